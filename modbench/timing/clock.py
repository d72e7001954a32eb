"""Times all cases of a scheme, or a machine's ceilings, in this process, and monitors the machine.

R rows, I inner dimension, C columns of a matmul.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Literal

import torch
import torch.nn.functional as F

from modbench.errors import FAULTS, UserError
from modbench.hf.config import matrices_of
from modbench.model.language_model import LanguageModel
from modbench.model.mlp import up_columns
from modbench.model.shape import HubConfig, Shape
from modbench.model.trace import Trace
from modbench.routing.plugin_fault import raised
from modbench.timing.benchmark_case import (
    BenchmarkCase,
    BenchmarkTarget,
    inference_cases,
    is_compiled,
    training_cases,
)
from modbench.timing.footprint import release_memory
from modbench.timing.stopwatch import Stopwatch, nothing, sampled, stopwatch
from modbench.timing.system_load import LoadMonitor
from modbench.train.out_of_memory import asked_bytes, failed_allocation, out_of_memory_sentence

#: Reasons that slow a GPU down (nvml.h, nvmlClocksEventReason*), by their bits; not idling, and not
#: clocks set by the user.
THROTTLING: Mapping[int, str] = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
#: Least seconds of work whose energy is reported: a GPU's counter advances in steps.
LEAST_COUNTED = 1.0


class Gpu:
    """The GPU ``handle`` of ``nvml`` (the module pynvml)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def ask(self, name: str, *further: int) -> int | None:
        """Call NVML's function ``name``; None if it does not exist or the GPU does not support it."""
        asked = getattr(self._nvml, name, None)
        try:
            return None if asked is None else int(asked(self._handle, *further))
        except self._nvml.NVMLError:
            return None


class GpuMonitor:
    """Clocks, throttling and energy of ``gpu`` over some samples; without a GPU, none of them."""

    def __init__(self, gpu: Gpu | None) -> None:
        self._gpu = gpu
        self._clocks: dict[str, list[int]] = {"clock_mhz": [], "memory_clock_mhz": []}
        self._throttled: set[str] = set()
        self._begun = 0.0
        self._before: int | None = None

    def look(self) -> None:
        """Note the current clocks and the reasons that slow the GPU down, where it has them."""
        if self._gpu is None:
            return
        for kind, clocks in zip((1, 2), self._clocks.values(), strict=True):  # NVML_CLOCK_SM, _MEM
            if (clock := self._gpu.ask("nvmlDeviceGetClockInfo", kind)) is not None:
                clocks.append(clock)
        # Drivers before 535 know only the second name; it is deprecated.
        reasons = self._gpu.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = self._gpu.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        self._throttled |= {name for bit, name in THROTTLING.items() if (reasons or 0) & bit}

    def begin(self) -> None:
        """Begin to count energy."""
        self._begun, self._before = monotonic(), self._millijoules()

    def joules(self, runs: int) -> float | None:
        """Joules per run since `begin`, including what happens between runs; None if the GPU does not
        count them, or if all took under `LEAST_COUNTED`."""
        after = self._millijoules()
        if self._before is None or after is None or monotonic() - self._begun < LEAST_COUNTED:
            return None
        return (after - self._before) / 1e3 / runs

    def seen(self) -> dict[str, Any] | None:
        """Lowest and highest clocks, and what slowed the GPU down; None without a GPU."""
        if self._gpu is None:
            return None
        clocks = {name: [min(seen), max(seen)] if seen else None for name, seen in self._clocks.items()}
        return {**clocks, "throttled": sorted(self._throttled)}

    def _millijoules(self) -> int | None:
        return None if self._gpu is None else self._gpu.ask("nvmlDeviceGetTotalEnergyConsumption")


def open_gpu(on: torch.device) -> tuple[Gpu | None, str]:
    """The GPU ``on``; or None, and the reason."""
    if on.type != "cuda":
        return None, "no GPU"
    try:
        import pynvml
    except ImportError:
        return None, "pynvml is not installed"
    try:
        pynvml.nvmlInit()
        # By UUID, since CUDA_VISIBLE_DEVICES may renumber GPUs.
        name = f"GPU-{torch.cuda.get_device_properties(on).uuid}"
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(name)), ""
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"


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


#: Bytes of the copied tensor, larger than any cache.
COPIED = {"cpu": 2**28, "cuda": 2**30}
#: Matmuls in a run: launching one takes a GPU's host as long as a small one takes, so that it is ahead
#: of the GPU only from the second on.
IN_A_ROW = {"cpu": 1, "cuda": 8}


def gemm_shapes(model: Shape) -> dict[str, tuple[int, int]]:
    """Inner dimension and columns of the dense model's matmuls, by component."""
    if isinstance(model, HubConfig):
        return matrices_of(model)
    qkv = (model.heads + 2 * model.key_heads) * model.head_width
    return {
        "attention.qkv": (model.width, qkv),
        "attention.out": (model.width, model.width),
        "mlp up": (model.width, up_columns(model, model.hidden)),
        "mlp down": (model.hidden, model.width),
        "head": (model.width, model.vocabulary),
    }


@torch.no_grad()
def ceilings(
    subject: BenchmarkTarget, watch: Stopwatch, meanwhile: Callable[[], object] = nothing
) -> dict[str, Any]:
    """Measure ``gemm``, the FLOP/s of ``(rows, inner) @ (inner, columns)`` with the rows of one training
    batch, in the run's dtype and in float32; and ``copy_bytes_per_second``, bytes read and written. Each
    is the best sample, since disturbances only slow it down. ``meanwhile``: see `sampled`."""
    time, on = subject.time, subject.on

    def best(run: Callable[[], object]) -> float:
        taken = sampled(watch, run, samples=time.samples, warm_up=time.warm_up, meanwhile=meanwhile)
        return min(taken.seconds)

    def matmul_seconds(dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
        x_RI = torch.randn(rows, inner, device=on).to(dtype)
        weight_CI = torch.randn(columns, inner, device=on).to(dtype)
        times = range(IN_A_ROW[on.type])
        return best(lambda: [F.linear(x_RI, weight_CI) for _ in times]) / len(times)

    rows = subject.train.batch * subject.train.sequence
    gemms = [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "component": name,
            "rows": rows,
            "inner": inner,
            "columns": columns,
            "flops_per_second": 2 * rows * inner * columns / matmul_seconds(dtype, rows, inner, columns),
        }
        for dtype in dict.fromkeys((subject.dtype, torch.float32))
        for name, (inner, columns) in gemm_shapes(subject.config).items()
    ]
    source = torch.ones(COPIED[on.type], dtype=torch.uint8, device=on)
    target = torch.zeros_like(source)
    seconds = best(lambda: target.copy_(source))
    return {"gemm": gemms, "copy_bytes_per_second": 2 * len(source) / seconds}
