"""Times training steps of schemes on this machine, each in a worker, as many at a time as `modbench
run` has cells."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

from modbench.sweep.worker import DiedError, Say, run_worker
from modbench.timing.config import TimeConfig

#: A step is timed if it takes at most this many seconds at the rate of a large matmul.
LONGEST_STEP = 3.0
#: Weights, gradients and AdamW's two moments in float32.
BYTES_PER_PARAMETER = 16
#: Seconds of samples at each shape.
_SECONDS = 0.7
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
                found = run_worker(spec, log=Path(folder, f"{number}.txt"), timeout=_TIMEOUT)
            except DiedError as death:
                return Speed(missing=(f"its process ended: {death}",))
            steps = tuple(TimedStep(**step) for step in found["steps"])
            return Speed(steps=steps, missing=tuple(found["missing"]))

        found = pool.map(measure, range(len(specs)), specs.values())
        return dict(zip(specs, found, strict=True))


def timing_spec(
    cell: Mapping[str, Any],
    shapes: Sequence[tuple[Mapping[str, Any], int]],
    plugins: Sequence[str],
    threads: int,
) -> dict[str, Any]:
    """The specification of `time_steps`. ``shapes``: models and the FLOPs of a training step of each."""
    time = TimeConfig(compile=cell["train"]["compile"], deterministic=True)
    return {
        "job": "steps",
        "cell": {**cell, "time": asdict(time)},
        "shapes": sorted(shapes, key=lambda shape: shape[1]),
        "plugins": list(plugins),
        "threads": threads,
    }


def time_steps(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Time training steps of the cell of ``spec`` (router, train, time) at the smallest, middle and
    largest of its ``shapes`` (models with the FLOPs of a step, ascending) whose steps are short enough:
    ``steps``, the fields of `TimedStep`; ``missing``: a sentence for each reason to leave shapes out."""
    from modbench.sweep.cell import prepare_process
    from modbench.timing.benchmark_target import BenchmarkTarget
    from modbench.timing.matmul_rate import matmul_rate
    from modbench.timing.memory_meter import release_memory
    from modbench.train.numerics import make_deterministic
    from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence

    prepare_process(spec)
    make_deterministic()
    targets = [
        (BenchmarkTarget.of({**spec["cell"], "model": model}), flops) for model, flops in spec["shapes"]
    ]
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
        needed, free = BYTES_PER_PARAMETER * target.outline().parameter_count(), _free(target)
        if needed > free:
            missing.append(
                f"width {model.width}: weights, gradients and optimizer take {needed / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB of memory are free"
            )
            continue
        try:
            seconds = _seconds(target)
        except Exception as error:
            failed = failed_allocation(error)
            if failed is None:
                raise
            missing.append(f"width {model.width}: {out_of_memory_sentence(failed)}")
        else:
            step = TimedStep(width=model.width, layers=model.layers, flops=flops, seconds=seconds)
            steps.append(asdict(step))
        release_memory(first.on)
    return {"steps": steps, "missing": missing}


def _free(target: Any) -> int:
    """Free bytes of memory of the device of ``target``."""
    if target.on.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(target.on)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _seconds(target: Any) -> float:
    """Median seconds of a training step of ``target``."""
    from modbench.timing.benchmark_case import training_cases
    from modbench.timing.stopwatch import stopwatch

    (case,) = (one for one in training_cases(target.build(), target) if one.phase == "train")
    run, watch = case.prepare().run, stopwatch(target.on)
    watch.seconds(run)  # allocates, and compiles
    found = [watch.seconds(run)]
    while sum(found) < _SECONDS:
        found.append(watch.seconds(run))
    return statistics.median(found)
