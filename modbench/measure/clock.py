"""Times all cases of a scheme, or a machine's ceilings, in this process, and watches what the machine
does meanwhile."""

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from modbench.measure.busy import Busy
from modbench.measure.cases import (
    Case,
    inference_cases,
    is_compiled,
    training_cases,
)
from modbench.measure.ceiling import ceilings
from modbench.measure.nvml import Gpu, Watched, open_gpu
from modbench.measure.out_of_memory import failed_allocation
from modbench.measure.stopwatch import Stopwatch, sampled, stopwatch
from modbench.measure.subject import Subject
from modbench.model.context import Trace
from modbench.model.decoder import Decoder

#: Seconds of work whose energy is told: a GPU's counter moves in steps, not all the time.
LEAST_COUNTED = 1.0

Say = Callable[[dict[str, Any]], None]
BALANCES = ("forced", "as routed", "nothing routed")


class MemoryRanOutError(Exception):
    """In the middle of several cases, of which ``found`` has those before; it was raised from what says
    how much was asked for."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__(f"memory ran out after {len(found['cases'])} cases")
        self.found = found


def timed(kind: str, subject: Subject, threads: int, say: Say) -> dict[str, Any]:
    """``kind`` ``time``: the subject's ``cases`` and ``balance``; ``ceiling``: its machine's `ceilings`.
    Both with the ``machine``'s state.

    Raises:
        MemoryRanOutError: it did, when some cases had been timed.
    """
    watch, busy = stopwatch(subject.on), Busy()
    gpu, why_none = open_gpu(subject.on)
    if kind == "ceiling":
        say({"event": "phase", "phase": "matmuls and copies"})
        watched = Watched()
        _look(gpu, watched)
        found = ceilings(subject, watch)
        _look(gpu, watched)
        found["gpu"] = watched.as_dict() if gpu is not None else None
        return found | _machine(busy, threads, why_none)
    try:
        return _cases(subject, watch, gpu, say) | _machine(busy, threads, why_none)
    except MemoryRanOutError as error:
        error.found |= _machine(busy, threads, why_none)
        raise


def _machine(busy: Busy, threads: int, why_none: str | None) -> dict[str, Any]:
    return {"machine": busy.state(threads) | {"nvml": why_none or "ok"}}


def _cases(subject: Subject, watch: Stopwatch, gpu: Gpu | None, say: Say) -> dict[str, Any]:
    model = subject.build()
    cases: list[dict[str, Any]] = []
    kinds: set[str] = set()
    time = subject.time
    many = 2 + len(time.prefill) + len(time.decode_batches) * len(time.decode_past)

    def found() -> dict[str, Any]:
        strongest = next(kind for kind in BALANCES if kind in kinds)
        return {"cases": cases, "balance": strongest, "compiled": is_compiled(model, subject.time)}

    try:
        for number, case in enumerate(_in_turn(subject, model), start=1):
            say({"event": "step", "phase": "timing", "step": number, "steps": many})
            measured, kind = _case(case, model, subject, watch, gpu)
            cases.append(measured)
            kinds.add(kind)
    except Exception as error:
        if not cases or failed_allocation(error) is None:
            raise
        raise MemoryRanOutError(found()) from error
    return found()


def _in_turn(subject: Subject, model: Decoder) -> Iterator[Case]:
    time, dtype = subject.time, subject.dtype
    yield from training_cases(model, time, subject.train, dtype)
    yield from inference_cases(model, time, dtype)


def _case(
    case: Case, model: Decoder, subject: Subject, watch: Stopwatch, gpu: Gpu | None
) -> tuple[dict[str, Any], str]:
    case.before()
    traces = list(case.run())
    flops, kind = case.flops(model, traces), balance(traces)
    del traces  # a training step's hold its graph
    watched, time = Watched(), subject.time
    begun: list[tuple[float, float | None]] = []
    samples = sampled(
        watch,
        case.run,
        samples=time.samples,
        warm_up=time.warm_up,
        before=case.before,
        begin=lambda: begun.append((monotonic(), None if gpu is None else gpu.joules())),
        meanwhile=lambda: _look(gpu, watched),
    )
    return {
        "name": case.name,
        "phase": case.phase,
        "sequences": case.sequences,
        "tokens": case.tokens,
        "past": case.past,
        "seconds": samples.seconds,
        "loops": samples.loops,
        "flops": flops,
        "joules": _spent(gpu, *begun[0], samples.loops * time.samples),
        "gpu": watched.as_dict() if gpu is not None else None,
    }, kind


def _look(gpu: Gpu | None, watched: Watched) -> None:
    if gpu is not None:
        gpu.look(watched)


def _spent(gpu: Gpu | None, begun: float, before: float | None, runs: int) -> float | None:
    """Joules of a run, what comes between runs included; None if all took less than `LEAST_COUNTED`."""
    after = None if gpu is None else gpu.joules()
    if before is None or after is None or monotonic() - begun < LEAST_COUNTED:
        return None
    return (after - before) / runs


def balance(traces: list[Trace]) -> str:
    """``forced`` where layers said that they routed evenly by force, ``as routed`` where layers route
    and none did, ``nothing routed`` where none tells of routing."""
    if any(trace.forced for trace in traces):
        return BALANCES[0]
    return BALANCES[1] if any(trace.counts or trace.tensors for trace in traces) else BALANCES[2]
