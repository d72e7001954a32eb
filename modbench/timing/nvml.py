"""Clocks, throttling and energy of a GPU, read from NVIDIA's management library (NVML)."""

from collections.abc import Mapping
from time import monotonic
from typing import Any

import torch

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
