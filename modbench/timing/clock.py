"""Times all cases of a scheme, or a machine's ceilings, in this process, and monitors the machine.

R rows, I inner dimension, C columns of a matmul.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from time import monotonic
from typing import Any, Literal

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from modbench.errors import FAULTS, UserError
from modbench.hf.config import matrices_of
from modbench.model.language_model import LanguageModel
from modbench.model.mlp import up_columns
from modbench.model.shape import HubConfig, Shape
from modbench.model.trace import Trace
from modbench.routing.plugin_fault import raised
from modbench.timing.benchmark_case import (
    LAUNCHES_AHEAD,
    BenchmarkCase,
    BenchmarkTarget,
    Prepared,
    inference_cases,
    training_cases,
)
from modbench.timing.footprint import release_memory
from modbench.timing.stopwatch import SHORTEST, Stopwatch, nothing, sampled, stopwatch
from modbench.timing.system_load import LoadMonitor
from modbench.train.compiled import compiles, programs
from modbench.train.out_of_memory import asked_bytes, failed_allocation, out_of_memory_sentence

#: Reasons that slow a GPU down (nvml.h, nvmlClocksEventReason*), by their bits; not idling, not clocks
#: set by the user, and not the power cap, which is normal at full load.
POWER_CAP = 0x04
THROTTLING: Mapping[int, str] = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
#: Least seconds of work whose energy is reported: a GPU's counter advances in steps.
LEAST_COUNTED = 1.0
#: Samples of runs in a row: each is a mean already, and takes as long as all samples of single runs.
ROWS = 3


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
    """Clocks, throttling, power cap and energy of ``gpu`` over some samples; without a GPU, none of
    them."""

    def __init__(self, gpu: Gpu | None) -> None:
        self._gpu = gpu
        self._clocks: dict[str, list[int]] = {"clock_mhz": [], "memory_clock_mhz": []}
        self._throttled: set[str] = set()
        self._is_capped = False
        self._begun = 0.0
        self._before: int | None = None

    def look(self) -> None:
        """Note the current clocks and the reasons that slow the GPU down, where it has them."""
        if self._gpu is None:
            return
        for kind, clocks in zip((1, 2), self._clocks.values(), strict=True):  # NVML_CLOCK_SM, _MEM
            if (clock := self._gpu.ask("nvmlDeviceGetClockInfo", kind)) is not None:
                clocks.append(clock)
        reasons = self._gpu.ask("nvmlDeviceGetCurrentClocksEventReasons") or 0  # from driver 535 on
        self._throttled |= {name for bit, name in THROTTLING.items() if reasons & bit}
        self._is_capped |= bool(reasons & POWER_CAP)

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
        """Lowest and highest clocks, the mean clock, whether the power cap lowered it, and what slowed
        the GPU down; None without a GPU."""
        if self._gpu is None:
            return None
        clocks = {name: [min(seen), max(seen)] if seen else None for name, seen in self._clocks.items()}
        mean = round(fmean(self._clocks["clock_mhz"] or [0]))
        means = {"mean_clock_mhz": mean or None, "power_capped": self._is_capped}
        return {**clocks, **means, "throttled": sorted(self._throttled)}

    def _millijoules(self) -> int | None:
        return None if self._gpu is None else self._gpu.ask("nvmlDeviceGetTotalEnergyConsumption")


def open_gpu(on: torch.device) -> tuple[Gpu | None, str]:
    """The GPU ``on`` and "ok"; or None, and the reason."""
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
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(name)), "ok"
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"


Say = Callable[[dict[str, Any]], None]
BALANCES = ("forced", "as routed", "nothing routed")


def measured_ceilings(
    target: BenchmarkTarget, threads: int, say: Say = lambda event: None
) -> dict[str, Any]:
    """`ceilings` of the machine of ``target``, with the state of the ``machine``."""
    load = LoadMonitor()
    load.look_at_gpu()
    gpu, nvml = open_gpu(target.on)
    say({"event": "phase", "phase": "matmuls and copies"})
    monitor = GpuMonitor(gpu)
    measured = ceilings(target, stopwatch(target.on), meanwhile=monitor.look) | {"gpu": monitor.seen()}
    return measured | {"machine": _state(target, load, threads) | {"nvml": nvml}}


def measured_times(
    kind: Literal["training", "inference"],
    target: BenchmarkTarget,
    threads: int,
    say: Say = lambda event: None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Time the cases of ``kind``: ``cases`` and their ``balance``, those that ``ran_out`` of memory and
    those that ``failed``, with the state of the ``machine``.

    ``next``: number of the case that another process must begin with, because an error has ended this
    one's use of the GPU; that process gets what this one returned as ``earlier``."""
    earlier = earlier or {}
    watch, load = stopwatch(target.on), LoadMonitor()
    gpu, nvml = open_gpu(target.on)
    model = target.build()
    in_turn = {"training": training_cases, "inference": inference_cases}[kind](model, target)
    cases, ran_out, failed = ([*earlier.get(name, ())] for name in ("cases", "ran_out", "failed"))
    kinds = {BALANCES[-1], earlier.get("balance", BALANCES[-1])}
    timed: list[tuple[BenchmarkCase, dict[str, Any]]] = []
    following = len(in_turn)
    for number in range(earlier.get("next", 0), len(in_turn)):
        case = in_turn[number]
        say({"event": "step", "phase": "timing", "step": number + 1, "steps": len(in_turn)})
        named = {name: getattr(case, name) for name in ("name", "phase", "sequences", "tokens", "past")}
        try:
            load.look_at_gpu()
            if times := _case(case, model, target, watch, gpu):
                kinds.add(times.pop("balance"))
                cases.append(named | times)
                timed.append((case, cases[-1]))
        except UserError:
            raise
        except FAULTS as error:
            lack = out_of_memory(error)
            if lack is None:
                # The log gets the traceback. The router may be able to train and not to decode yet.
                traceback.print_exc()
                failed.append(f"{case.name} {raised(error)}")
            elif others := load.look_at_gpu():
                failed.append(f"{case.name}: {no_result(lack, others)}")
            else:
                ran_out.append(named | lack)
            if ends_gpu(error, target.on):
                following = number + 1
                break
        if ran_out or failed:
            model.zero_grad(set_to_none=True)
            release_memory(target.on)
    else:
        if target.on.type in LAUNCHES_AHEAD and kind == "inference":
            _add_host_shares(timed)
    machine = _state(target, load, threads) | {"nvml": nvml}
    machine["overloaded"] |= earlier.get("machine", {}).get("overloaded", False)
    measured: dict[str, Any] = {
        "cases": cases,
        "balance": min(kinds, key=BALANCES.index),
        "compiled": compiles(target.time.compile, target.on),
        "machine": machine,
    }
    if (made := programs())["graphs"]:
        measured["programs"] = made
    lists = {"ran_out": ran_out, "failed": failed}
    further = {"next": following} if following < len(in_turn) else {}
    return measured | {name: items for name, items in lists.items() if items} | further


def _state(target: BenchmarkTarget, load: LoadMonitor, threads: int) -> dict[str, Any]:
    load.look_at_gpu()
    # Work of a GPU keeps one or two cores busy, whatever the number of threads.
    return load.state(threads, all_at_work=target.on.type == "cpu")


def out_of_memory(error: BaseException) -> dict[str, Any] | None:
    """Size and sentence of a failed allocation; None if ``error`` is something else."""
    failed = failed_allocation(error)
    if failed is None:
        return None
    return {"asked_bytes": asked_bytes(str(failed)), "error": out_of_memory_sentence(failed)}


def no_result(lack: Mapping[str, Any], others: Sequence[str]) -> str:
    """Sentence on a lack of memory (`out_of_memory`) while ``others`` used the GPU."""
    return f"{lack['error']}; no result, {others[0]} used the GPU, too; run again once it has ended"


def ends_gpu(error: BaseException, on: torch.device) -> bool:
    """Return True if ``error`` left the GPU unusable for this process: after an illegal address or a
    failed device assertion each later call raises it again."""
    if isinstance(error, torch.AcceleratorError):
        return True
    try:
        if on.type == "cuda":
            torch.cuda.synchronize(on)
    except RuntimeError:
        return True
    return False


def _case(
    case: BenchmarkCase,
    model: LanguageModel,
    subject: BenchmarkTarget,
    watch: Stopwatch,
    gpu: Gpu | None,
) -> dict[str, Any]:
    """Measure a case; return {} if the case does not apply to the model."""
    if (prepared := case.prepare()) is None:
        return {}
    run, before = prepared
    before()
    traces = run()
    measured: dict[str, Any] = {"flops": case.flops(model, traces), "balance": balance(traces)}
    del traces  # those of a training step hold its graph
    monitor = GpuMonitor(gpu)
    number = min(subject.time.samples, ROWS) if case.in_a_row else subject.time.samples
    samples = sampled(
        watch,
        run,
        samples=number,
        warm_up=subject.warm_up,
        loops=case.in_a_row,
        in_a_row=bool(case.in_a_row),
        before=before,
        begin=monitor.begin,
        meanwhile=monitor.look,
    )
    joules = monitor.joules(samples.loops * number)
    return measured | asdict(samples) | {"joules": joules, "gpu": monitor.seen()}


def _add_host_shares(timed: Sequence[tuple[BenchmarkCase, dict[str, Any]]]) -> None:
    """Add the host's share of each case, the part of its time in which the GPU does not compute. This
    comes last, since a profiler slows later launches down."""
    for case, measured in timed:
        try:
            busy = busy_seconds(case.prepare())
        except FAULTS:  # the times remain
            traceback.print_exc()
            return
        if busy:
            measured["host_share"] = max(0.0, 1 - busy / median(measured["seconds"]))


def busy_seconds(prepared: Prepared | None) -> float:
    """Seconds for which the GPU computes in one run, as PyTorch's profiler counts them."""
    run, before = prepared or (nothing, nothing)
    before()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    kernels = (event for event in profiled.events() if event.device_type == DeviceType.CUDA)
    return sum(event.time_range.elapsed_us() for event in kernels) / 1e6


def balance(traces: Sequence[Trace]) -> str:
    """``forced`` if a layer forced balanced routing, ``as routed`` if layers routed by their scores,
    ``nothing routed`` if no layer routes."""
    if any(trace.forced for trace in traces):
        return BALANCES[0]
    return BALANCES[1] if any(trace.counts or trace.tensors for trace in traces) else BALANCES[2]


#: Bytes of the copied tensor, larger than any cache.
COPIED = {"cpu": 2**28, "cuda": 2**30}
#: Seconds of a sample of a ceiling: a GPU's host is ahead of it from the second matmul on.
CEILING_SECONDS = {"cpu": SHORTEST, "cuda": 0.05}


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
    """Measure ``gemm``, the FLOP/s of ``(rows, inner) @ (inner, columns)`` with the rows of one pass of
    a training step, in the run's dtype and in float32; and ``copy_bytes_per_second``, bytes read and
    written. Each is the median of samples in a row (`sampled`). ``meanwhile``: see there."""
    on = subject.on

    def seconds(run: Callable[[], object]) -> float:
        taken = sampled(
            watch,
            run,
            samples=subject.time.samples,
            warm_up=subject.warm_up,
            shortest=CEILING_SECONDS[on.type],
            in_a_row=True,
            meanwhile=meanwhile,
        )
        return median(taken.seconds)

    def matmul_seconds(dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
        x_RI = torch.randn(rows, inner, device=on).to(dtype)
        weight_IC = torch.randn(columns, inner, device=on).to(dtype).t()
        out_RC = torch.empty(rows, columns, device=on, dtype=dtype)
        return seconds(lambda: torch.mm(x_RI, weight_IC, out=out_RC))

    rows = subject.train.rows * subject.train.sequence
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
    copied = seconds(lambda: target.copy_(source))
    return {"gemm": gemms, "copy_bytes_per_second": 2 * len(source) / copied}
