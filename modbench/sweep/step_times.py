"""Times training steps of schemes on this machine, each in a worker, as many at a time as `modbench
run` has jobs."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from typing import Any

from modbench.records.run import Timed
from modbench.sweep.process import DiedError, Say, run_worker
from modbench.timing.config import TimeConfig

#: A step is timed if it takes at most this many seconds at the rate of a large matmul. A real step takes
#: longer, and a plan should end in minutes.
LONGEST_STEP = 3.0
#: Timed steps of each shape, and seconds of warm-up: more would steady the median, and make a plan
#: slower.
_SAMPLES, _WARM_UP = 3, 0.1
#: Seconds without progress after which a worker is ended; a step may be compiled first.
_TIMEOUT = 600.0


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """A training step of nominal ``flops`` and its median ``seconds``."""

    width: int
    layers: int
    flops: int
    seconds: float

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training speed of a scheme: ``steps`` in ascending order of FLOPs; and the reasons why other
    shapes were not timed."""

    steps: tuple[TimedStep, ...] = ()
    missing: tuple[str, ...] = ()

    def seconds(self, flops: int, of_step: int) -> float | None:
        """Seconds of ``flops`` in steps of ``of_step`` FLOPs each, by FLOP/s interpolated in the
        logarithm of a step's FLOPs; None outside the timed steps."""
        for below, above in zip(self.steps, self.steps[1:] or self.steps, strict=False):
            if below.flops <= of_step <= above.flops:
                span = log(above.flops / below.flops)
                share = log(of_step / below.flops) / span if span else 0.0
                return flops / (below.rate + share * (above.rate - below.rate))
        return None


def speeds(specs: Mapping[str, Mapping[str, Any]], at_a_time: int) -> dict[str, Speed]:
    """The speed of each scheme, by label. ``specs``: of `time_steps`."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_a_time) as pool:

        def measure(number: int, spec: Mapping[str, Any]) -> Speed:
            try:
                answer = run_worker(spec, log=Path(folder, f"{number}.txt"), timeout=_TIMEOUT)
            except DiedError as death:
                return Speed(missing=(f"its process ended: {death}",))
            steps = tuple(TimedStep(**step) for step in answer["steps"])
            return Speed(steps=steps, missing=tuple(answer["missing"]))

        results = pool.map(measure, range(len(specs)), specs.values())
        return dict(zip(specs, results, strict=True))


def recorded_speeds(
    folder: Path, shapes: Mapping[str, Sequence[tuple[Timed, int]]], threads: int
) -> dict[str, Speed]:
    """The speeds of the schemes of ``shapes`` whose smallest and largest shape `modbench time` has timed
    on this machine with ``threads``, from the newest session in ``folder`` (results/<suite>)."""
    import torch

    from modbench.measure.environment import environment
    from modbench.records.store import read_suite
    from modbench.report.timing.table import TimingTable
    from modbench.report.timing.values import machine_in_words, newest_session

    timings = read_suite(folder).timings if folder.is_dir() else []
    session = newest_session(timings) if timings else []
    here = machine_in_words(environment(torch.float32) | {"threads": threads})
    if not session or machine_in_words(session[0].environment) != here:
        return {}
    labels = {timing.key: timing.key for timing in session}
    rows = [row for row in TimingTable(session, labels).cases if row["case"] == "train"]
    seconds = {row["key"]: row["seconds_median"] for row in rows if row["seconds_median"] is not None}
    recorded = {}
    for scheme, timed_shapes in shapes.items():
        ascending = sorted(timed_shapes, key=lambda shape: shape[1])
        known = [(timed, flops) for timed, flops in ascending if timed.key in seconds]
        if known and known[0] == ascending[0] and known[-1] == ascending[-1]:
            steps = (
                TimedStep(
                    width=timed.model.width,
                    layers=timed.model.layers,
                    flops=flops,
                    seconds=seconds[timed.key],
                )
                for timed, flops in known
            )
            recorded[scheme] = Speed(steps=tuple(steps))
    return recorded


def timing_spec(
    shapes: Sequence[tuple[Timed, int]],
    time: TimeConfig,
    plugins: Sequence[str],
    threads: int,
) -> dict[str, Any]:
    """The specification of `time_steps`. ``shapes``: of one scheme, with the FLOPs of a training
    step."""
    ascending = sorted(shapes, key=lambda shape: shape[1])
    return {
        "job": "steps",
        "timed": ascending[0][0].as_json(),
        "time": asdict(time),
        "shapes": [(timed.as_json(), flops) for timed, flops in ascending],
        "hf_folder": getattr(ascending[0][0].model, "folder", None),
        "plugins": list(plugins),
        "threads": threads,
    }


def time_steps(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Time training steps of the scheme of ``spec`` at the smallest, middle and largest of its
    ``shapes`` (with the FLOPs of a step, ascending) whose steps are short enough:
    ``steps``, the fields of `TimedStep`; ``missing``: a sentence for each reason to leave shapes out."""
    from modbench.sweep.run_job import prepare_process
    from modbench.timing.benchmark_case import BenchmarkTarget
    from modbench.timing.clock import measured_times, out_of_memory
    from modbench.timing.footprint import release_memory
    from modbench.timing.stopwatch import matmul_rate
    from modbench.train.numerics import make_deterministic

    shapes = [(Timed.of(timed, spec["hf_folder"]), flops) for timed, flops in spec["shapes"]]
    time = replace(
        TimeConfig(**spec["time"]), samples=_SAMPLES, warm_up_seconds=_WARM_UP, steps_in_a_row=0
    )
    prepare_process(shapes[0][0].router, spec["plugins"], spec["threads"])
    make_deterministic()
    targets = [(BenchmarkTarget.of(timed, time), flops) for timed, flops in shapes]
    first = targets[0][0]
    limit = LONGEST_STEP * matmul_rate(first.dtype, first.on)
    short = [(target, flops) for target, flops in targets if flops <= limit]
    missing = []
    if len(short) < len(targets):
        missing.append(
            f"steps of more than {limit:.1e} FLOPs ({LONGEST_STEP:g} s at the rate of a large matmul) "
            "are not timed"
        )
    steps = []
    for number in dict.fromkeys((0, len(short) // 2, len(short) - 1) if short else ()):
        target, flops = short[number]
        model = target.config
        say({"event": "phase", "phase": f"width {model.width}"})
        try:
            measured = measured_times("training", target, spec["threads"], say)
        except Exception as error:  # the model itself may not fit
            lack = out_of_memory(error)
            if lack is None:
                raise
            measured = {"cases": [], "ran_out": [lack]}
        for case in measured["cases"]:
            if case["phase"] == "train":
                seconds = statistics.median(case["seconds"])
                step = TimedStep(width=model.width, layers=model.layers, flops=flops, seconds=seconds)
                steps.append(asdict(step))
        lacks = [*(case["error"] for case in measured.get("ran_out", ())), *measured.get("failed", ())]
        missing += [f"width {model.width}: {lack}" for lack in dict.fromkeys(lacks)]
        release_memory(first.on)
    return {"steps": steps, "missing": missing}
