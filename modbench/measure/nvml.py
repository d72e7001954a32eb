"""Clocks, throttling and energy of a GPU, read from NVIDIA's management library (NVML)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass
class Watched:
    """Clocks of a GPU over some samples; ``throttled``: reasons that slowed it down in any of them."""

    clocks: list[int] = field(default_factory=list)
    memory_clocks: list[int] = field(default_factory=list)
    throttled: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        return {
            "clock_mhz": _range(self.clocks),
            "memory_clock_mhz": _range(self.memory_clocks),
            "throttled": sorted(self.throttled),
        }


def _range(clocks: list[int]) -> list[int] | None:
    return [min(clocks), max(clocks)] if clocks else None


class Gpu:
    """The GPU ``handle`` of ``nvml`` (the module pynvml)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def look(self, watched: Watched) -> None:
        """Add the current clocks and throttling reasons to ``watched``, where the GPU has them."""
        nvml = self._nvml
        for kind, into in (
            (nvml.NVML_CLOCK_SM, watched.clocks),
            (nvml.NVML_CLOCK_MEM, watched.memory_clocks),
        ):
            if (clock := self._query("nvmlDeviceGetClockInfo", kind)) is not None:
                into.append(clock)
        # Drivers before 535 know only the second name; it is deprecated.
        for name in ("EventReasons", "ThrottleReasons"):
            reasons = self._query(f"nvmlDeviceGetCurrentClocks{name}")
            if reasons is not None:
                watched.throttled.update(name for bit, name in THROTTLING.items() if reasons & bit)
                break

    def joules(self) -> float | None:
        """Joules since the driver was loaded; None if the GPU does not count them."""
        millijoules = self._query("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def _query(self, name: str, *further: int) -> int | None:
        """Call NVML's function ``name``; None if it does not exist or the GPU does not support it."""
        asked = getattr(self._nvml, name, None)
        try:
            return None if asked is None else int(asked(self._handle, *further))
        except self._nvml.NVMLError:
            return None


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
