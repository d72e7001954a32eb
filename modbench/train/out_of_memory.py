"""Recognises a failed allocation, and its size where the error gives one."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

LESS_MEMORY = "lower [train] micro_batch, or set recompute = true"  #: what helps

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
#: Messages of PyTorch on a CPU, PyTorch on a GPU, and numpy.
_SIZE = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+) (bytes|[KMGTP]iB)")
#: Folder of a Linux control group, and the files of its limit and of what is used; versions 2 and 1.
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
#: Messages of plain RuntimeErrors.
_WORDS = re.compile("can't allocate memory|out of memory|_ALLOC_FAILED|[Tt]ried to allocate")


def asked_bytes(text: str) -> int | None:
    """The size that an allocation error asked for; None if ``text`` gives none."""
    match = _SIZE.search(text)
    return None if match is None else round(float(match[1]) * 1024 ** _UNITS.index(match[2]))


def failed_allocation(error: BaseException) -> BaseException | None:
    """The failed allocation that ``error`` is or was raised from; None if there is none."""
    import torch

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            return cause
        # PyTorch on a CPU, and some CUDA libraries
        if isinstance(cause, RuntimeError) and _WORDS.search(str(cause)):
            return cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def out_of_memory_sentence(error: BaseException) -> str:
    """One line on a `failed_allocation`: its size and the first line of its message."""
    size = asked_bytes(str(error))
    text = str(error).strip()
    asked = "an unknown number of" if size is None else f"{size:,}"
    first = text.splitlines()[0] if text else type(error).__name__
    return f"out of memory, asked for {asked} bytes ({first[:200]})"


def free_bytes(on: "torch.device") -> int:
    """Bytes that this process can still allocate on the device ``on``, within the limit of its control
    group."""
    import torch

    if on.type == "cuda":
        held = torch.cuda.memory_reserved(on) - torch.cuda.memory_allocated(on)
        return torch.cuda.mem_get_info(on)[0] + held
    free = [psutil.virtual_memory().available]
    for folder, limit, used in _GROUPS:
        with suppress(OSError, ValueError):  # no such group, or "max"
            free.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    return min(free)


def return_freed_memory(*, at_once: bool = False) -> None:
    """Give memory that was freed back to the system, where glibc's allocator holds it. ``at_once``: from
    now on, blocks of a megabyte or more when they are freed."""
    with suppress(OSError, TypeError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        if at_once:
            library.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD
        library.malloc_trim(0)


def out_of_memory_kills() -> int:
    """Number of processes that the Linux kernel has killed for lack of memory; 0 if unknown."""
    vmstat = Path("/proc/vmstat")
    match = re.search(r"^oom_kill (\d+)$", vmstat.read_text() if vmstat.exists() else "", re.MULTILINE)
    return 0 if match is None else int(match[1])
