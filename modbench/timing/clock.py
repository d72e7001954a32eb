"""Times all cases of a scheme, or a machine's ceilings, in this process, and monitors the machine."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any, Literal

from modbench.errors import FAULTS, UserError
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.routing.plugin_fault import raised
from modbench.timing.benchmark_case import (
    BenchmarkCase,
    inference_cases,
    is_compiled,
    training_cases,
)
from modbench.timing.benchmark_target import BenchmarkTarget
from modbench.timing.ceiling import ceilings
from modbench.timing.memory_meter import release_memory
from modbench.timing.nvml import Gpu, GpuMonitor, open_gpu
from modbench.timing.stopwatch import Stopwatch, sampled, stopwatch
from modbench.timing.system_load import LoadMonitor
from modbench.train.out_of_memory import asked_bytes, failed_allocation, out_of_memory_sentence

Say = Callable[[dict[str, Any]], None]
BALANCES = ("forced", "as routed", "nothing routed")


def measured_ceilings(
    target: BenchmarkTarget, threads: int, say: Say = lambda event: None
) -> dict[str, Any]:
    """`ceilings` of the machine of ``target``, with the state of the ``machine``."""
    load = LoadMonitor()
    gpu, why_none = open_gpu(target.on)
    say({"event": "phase", "phase": "matmuls and copies"})
    monitor = GpuMonitor(gpu)
    measured = ceilings(target, stopwatch(target.on), meanwhile=monitor.look) | {"gpu": monitor.seen()}
    return measured | {"machine": _state(target, load, threads, why_none)}


def measured_times(
    kind: Literal["training", "inference"],
    target: BenchmarkTarget,
    threads: int,
    say: Say = lambda event: None,
) -> dict[str, Any]:
    """Time the cases of ``kind``: ``cases`` and their ``balance``, those that ``ran_out`` of memory and
    those that ``failed``, with the state of the ``machine``."""
    watch = stopwatch(target.on)
    load = LoadMonitor()
    gpu, why_none = open_gpu(target.on)
    measured = _cases(target, watch, gpu, say, kind)
    return measured | {"machine": _state(target, load, threads, why_none)}


def _state(
    target: BenchmarkTarget, load: LoadMonitor, threads: int, why_none: str | None
) -> dict[str, Any]:
    # Work of a GPU keeps one or two cores busy, whatever the number of threads.
    state = load.state(threads, all_at_work=target.on.type == "cpu")
    return state | {"nvml": why_none or "ok"}


def _cases(
    subject: BenchmarkTarget, watch: Stopwatch, gpu: Gpu | None, say: Say, kind: str
) -> dict[str, Any]:
    model = subject.build()
    in_turn = {"training": training_cases, "inference": inference_cases}[kind](model, subject)
    cases: list[dict[str, Any]] = []
    ran_out: list[dict[str, Any]] = []
    failed: list[str] = []
    kinds = {BALANCES[-1]}
    for number, case in enumerate(in_turn, start=1):
        say({"event": "step", "phase": "timing", "step": number, "steps": len(in_turn)})
        named = {name: getattr(case, name) for name in ("name", "phase", "sequences", "tokens", "past")}
        try:
            measured, balanced = _case(case, model, subject, watch, gpu)
        except UserError:
            raise
        except FAULTS as error:
            lack = out_of_memory(error)
            if lack is None:
                # The log gets the traceback. The router may be able to train and not to decode yet.
                traceback.print_exc()
                failed.append(f"{case.name} {raised(error)}")
            else:
                ran_out.append(named | lack)
        else:
            cases.append(named | measured)
            kinds.add(balanced)
        if ran_out or failed:
            model.zero_grad(set_to_none=True)
            release_memory(subject.on)
    outcome = {
        "cases": cases,
        "balance": min(kinds, key=BALANCES.index),
        "compiled": is_compiled(model, subject.time),
    }
    return outcome | ({"ran_out": ran_out} if ran_out else {}) | ({"failed": failed} if failed else {})


def out_of_memory(error: BaseException) -> dict[str, Any] | None:
    """Size and sentence of a failed allocation; None if ``error`` is something else."""
    failed = failed_allocation(error)
    if failed is None:
        return None
    return {"asked_bytes": asked_bytes(str(failed)), "error": out_of_memory_sentence(failed)}


def _case(
    case: BenchmarkCase,
    model: LanguageModel,
    subject: BenchmarkTarget,
    watch: Stopwatch,
    gpu: Gpu | None,
) -> tuple[dict[str, Any], str]:
    run, before = case.prepare()
    before()
    traces = run()
    flops = case.flops(model, traces)
    kind = balance(traces)
    del traces  # those of a training step hold its graph
    monitor = GpuMonitor(gpu)
    time = subject.time
    samples = sampled(
        watch,
        run,
        samples=time.samples,
        warm_up=time.warm_up,
        before=before,
        begin=monitor.begin,
        meanwhile=monitor.look,
    )
    return {
        "seconds": samples.seconds,
        "loops": samples.loops,
        "flops": flops,
        "joules": monitor.joules(samples.loops * time.samples),
        "gpu": monitor.seen(),
    }, kind


def balance(traces: Sequence[Trace]) -> str:
    """``forced`` if a layer forced balanced routing, ``as routed`` if layers routed by their scores,
    ``nothing routed`` if no layer routes."""
    if any(trace.forced for trace in traces):
        return BALANCES[0]
    return BALANCES[1] if any(trace.counts or trace.tensors for trace in traces) else BALANCES[2]
