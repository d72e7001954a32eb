"""Times all cases of a scheme, or a machine's ceilings, in this process, and monitors the machine."""

import traceback
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from modbench.errors import FAULTS, UserError
from modbench.measure.benchmark_case import (
    BenchmarkCase,
    inference_cases,
    is_compiled,
    training_cases,
)
from modbench.measure.benchmark_target import BenchmarkTarget
from modbench.measure.ceiling import ceilings
from modbench.measure.memory_meter import release_memory
from modbench.measure.nvml import Gpu, Watched, open_gpu
from modbench.measure.stopwatch import Stopwatch, nothing, sampled, stopwatch
from modbench.measure.system_load import LoadMonitor
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder
from modbench.routing.plugin_fault import raised
from modbench.train.out_of_memory import asked_bytes, failed_allocation, out_of_memory_sentence

#: Least seconds of work whose energy is reported: a GPU's counter advances in steps.
LEAST_COUNTED = 1.0

Say = Callable[[dict[str, Any]], None]
BALANCES = ("forced", "as routed", "nothing routed")


def timed(
    kind: str,
    subject: BenchmarkTarget,
    threads: int,
    say: Say = lambda event: None,
    *,
    inference: bool = True,
) -> dict[str, Any]:
    """Measure. ``kind`` ``time``: the subject's ``cases`` (of training, and of ``inference``) and
    ``balance``, the cases that ``ran_out`` of memory and those that ``failed``; ``ceiling``: `ceilings`
    of its machine. Both with the state of the ``machine``."""
    watch, load = stopwatch(subject.on), LoadMonitor()
    gpu, why_none = open_gpu(subject.on)
    if kind == "ceiling":
        say({"event": "phase", "phase": "matmuls and copies"})
        watched = Watched()
        found = ceilings(
            subject, watch, meanwhile=nothing if gpu is None else partial(gpu.look, watched)
        )
        found["gpu"] = watched.as_dict() if gpu is not None else None
    else:
        found = _cases(subject, watch, gpu, say, inference)
    # Work of a GPU keeps one or two cores busy, whatever the number of threads.
    state = load.state(threads, all_at_work=subject.on.type == "cpu")
    return found | {"machine": state | {"nvml": why_none or "ok"}}


def _cases(
    subject: BenchmarkTarget, watch: Stopwatch, gpu: Gpu | None, say: Say, inference: bool
) -> dict[str, Any]:
    model, time, dtype = subject.build(), subject.time, subject.dtype
    in_turn = (
        *training_cases(model, time, subject.train, dtype),
        *(inference_cases(model, time, dtype) if inference else ()),
    )
    cases: list[dict[str, Any]] = []
    ran_out: list[dict[str, Any]] = []
    failed: list[str] = []
    kinds: set[str] = set()
    for number, case in enumerate(in_turn, start=1):
        say({"event": "step", "phase": "timing", "step": number, "steps": len(in_turn)})
        try:
            measured, kind = _case(case, model, subject, watch, gpu)
        except UserError:
            raise
        except FAULTS as error:
            lack = out_of_memory(error)
            if lack is None:
                # The log gets the traceback. The router may be able to train and not to decode yet.
                traceback.print_exc()
                failed.append(f"{case.name} {raised(error, router=model.router)}")
            else:
                ran_out.append(_named(case) | lack)
        else:
            cases.append(measured)
            kinds.add(kind)
        if ran_out or failed:
            model.zero_grad(set_to_none=True)
            release_memory(subject.on)
    strongest = next((kind for kind in BALANCES if kind in kinds), BALANCES[-1])
    found = {"cases": cases, "balance": strongest, "compiled": is_compiled(model, time)}
    return found | ({"ran_out": ran_out} if ran_out else {}) | ({"failed": failed} if failed else {})


def out_of_memory(error: BaseException) -> dict[str, Any] | None:
    """Size and sentence of a failed allocation; None if ``error`` is something else."""
    failed = failed_allocation(error)
    if failed is None:
        return None
    return {"asked_bytes": asked_bytes(str(failed)), "error": out_of_memory_sentence(failed)}


def _named(case: BenchmarkCase) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("name", "phase", "sequences", "tokens", "past")}


def _case(
    case: BenchmarkCase,
    model: RoutedDecoder,
    subject: BenchmarkTarget,
    watch: Stopwatch,
    gpu: Gpu | None,
) -> tuple[dict[str, Any], str]:
    prepared = case.prepare()
    prepared.before()
    traces = list(prepared.run())
    flops, kind = case.flops(model, traces), balance(traces)
    del traces  # those of a training step hold its graph
    watched, time = Watched(), subject.time
    begun: list[tuple[float, float | None]] = []
    samples = sampled(
        watch,
        prepared.run,
        samples=time.samples,
        warm_up=time.warm_up,
        before=prepared.before,
        begin=lambda: begun.append((monotonic(), None if gpu is None else gpu.joules())),
        meanwhile=nothing if gpu is None else partial(gpu.look, watched),
    )
    return _named(case) | {
        "seconds": samples.seconds,
        "loops": samples.loops,
        "flops": flops,
        "joules": _spent(gpu, *begun[0], samples.loops * time.samples),
        "gpu": watched.as_dict() if gpu is not None else None,
    }, kind


def _spent(gpu: Gpu | None, begun: float, before: float | None, runs: int) -> float | None:
    """Joules per run, including what happens between runs; None if all took under `LEAST_COUNTED`."""
    after = None if gpu is None else gpu.joules()
    if before is None or after is None or monotonic() - begun < LEAST_COUNTED:
        return None
    return (after - before) / runs


def balance(traces: list[Trace]) -> str:
    """``forced`` if a layer forced balanced routing, ``as routed`` if layers routed by their scores,
    ``nothing routed`` if no layer routes."""
    if any(trace.forced for trace in traces):
        return BALANCES[0]
    return BALANCES[1] if any(trace.counts or trace.tensors for trace in traces) else BALANCES[2]
