"""Memory of this process: the allocator's bytes on a GPU, the resident set on a CPU."""

import contextlib
import ctypes
import gc
import resource
from pathlib import Path

import psutil
import torch


class MemoryMeter:
    """Measures peak memory on ``on`` above the memory held at its construction."""

    def __init__(self, on: torch.device) -> None:
        self._on = on
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)
        self._baseline = psutil.Process().memory_info().rss
        if on.type == "cuda":
            self._baseline = torch.cuda.memory_allocated(on)
        self.reset_peak()

    def reset_peak(self) -> None:
        if self._on.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._on)
        else:
            with contextlib.suppress(OSError):  # not Linux; importing PyTorch may then hide a small peak
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        if self._on.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._on)) - self._baseline
        with contextlib.suppress(OSError, IndexError):  # not Linux
            # `reset_peak` resets it, unlike ru_maxrss.
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0]) - self._baseline
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._baseline  # bytes on macOS


def release_memory(on: torch.device) -> None:
    """Free unreachable objects (errors and their frames, for instance) and a GPU's cached blocks."""
    gc.collect()
    if on.type == "cuda":
        torch.cuda.empty_cache()
