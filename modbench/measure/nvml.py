"""Clocks, throttling, power and energy of a GPU as NVIDIA's management library tells them; null where it
can't be asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

#: Reasons for a lower clock than asked for (nvml.h, nvmlClocksEventReason*), by their bits.
THROTTLING: Mapping[int, str] = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def throttling(reasons: int) -> list[str]:
    """The reasons of a bit mask that slow a GPU down; idleness and clocks that a user set aren't among
    them."""
    return [name for bit, name in THROTTLING.items() if reasons & bit]


@dataclass
class Watched:
    """What a GPU's clocks did over some samples; ``throttled``: what slowed it down in any."""

    clocks: list[int] = field(default_factory=list)
    memory_clocks: list[int] = field(default_factory=list)
    throttled: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        return {
            "clock_mhz": [min(self.clocks), max(self.clocks)] if self.clocks else None,
            "memory_clock_mhz": (
                [min(self.memory_clocks), max(self.memory_clocks)] if self.memory_clocks else None
            ),
            "throttled": sorted(self.throttled),
        }


class Gpu:
    """The GPU ``handle`` of ``nvml`` (the module pynvml)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def look(self, watched: Watched) -> None:
        """Note the clocks of this moment in ``watched``, those that the GPU tells."""
        nvml = self._nvml
        for kind, into in (
            (nvml.NVML_CLOCK_SM, watched.clocks),
            (nvml.NVML_CLOCK_MEM, watched.memory_clocks),
        ):
            if (clock := self._told("nvmlDeviceGetClockInfo", kind)) is not None:
                into.append(clock)
        # One question by two names: before driver 535 there is the second alone, some day the first.
        for name in ("EventReasons", "ThrottleReasons"):
            reasons = self._told(f"nvmlDeviceGetCurrentClocks{name}")
            if reasons is not None:
                watched.throttled.update(throttling(reasons))
                break

    def joules(self) -> float | None:
        """Since the driver was loaded; None where the GPU doesn't count them."""
        millijoules = self._told("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def _told(self, name: str, *further: int) -> int | None:
        """What the function ``name`` says; None where there is none, or the GPU knows no such thing."""
        asked = getattr(self._nvml, name, None)
        try:
            return None if asked is None else int(asked(self._handle, *further))
        except self._nvml.NVMLError:
            return None


def open_gpu(on: torch.device) -> tuple[Gpu | None, str]:
    """The GPU ``on``, or None and why there is none to ask."""
    if on.type != "cuda":
        return None, "no GPU"
    try:
        import pynvml
    except ImportError:
        return None, "pynvml is not installed"
    try:
        pynvml.nvmlInit()
        # By its own name: CUDA_VISIBLE_DEVICES may number GPUs otherwise.
        name = f"GPU-{torch.cuda.get_device_properties(on).uuid}"
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(name)), ""
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
