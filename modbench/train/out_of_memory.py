"""What an allocation that failed says: that it was one, and how much it asked for. And whether the
kernel killed a process, which can say nothing."""

import re
from pathlib import Path

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
#: PyTorch on a CPU, PyTorch on a GPU, numpy.
_SAID = re.compile(
    r"(?:you tried to allocate|Tried to allocate|Unable to allocate) ([\d.]+) (bytes|[KMGTP]iB)"
)


#: What a RuntimeError says that has no size: PyTorch on a CPU, CUDA, Triton, CUDA's libraries.
_WORDS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def asked_bytes(text: str) -> int | None:
    """The size that was asked for, to the digits that ``text`` has; None where it is silent."""
    match = _SAID.search(text)
    return None if match is None else round(float(match[1]) * _UNITS[match[2]])


def failed_allocation(error: BaseException) -> BaseException | None:
    """The allocation that failed, if ``error`` is one or was raised because of one. On a CPU PyTorch
    raises a plain RuntimeError."""
    import torch

    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            return cause
        if isinstance(cause, RuntimeError) and (
            asked_bytes(str(cause)) is not None or any(words in str(cause) for words in _WORDS)
        ):
            return cause
        # What failed while it was being dealt with hides it there.
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def out_of_memory_sentence(error: BaseException) -> str:
    """One line on a `failed_allocation`: the size, and what it said."""
    asked, said = asked_bytes(str(error)), str(error).strip()
    size = "an unknown number of" if asked is None else f"{asked:,}"
    first = said.splitlines()[0] if said else type(error).__name__
    return f"out of memory, asked for {size} bytes ({first[:200]})"


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory, as far as it tells us."""
    kills = 0
    for file in (
        "/proc/vmstat",
        "/sys/fs/cgroup/memory.events",
        "/sys/fs/cgroup/memory/memory.oom_control",
    ):
        try:
            text = Path(file).read_text()
        except OSError:  # not Linux, or the other version of control groups
            continue
        kills += sum(int(count) for count in re.findall(r"^oom_kill (\d+)$", text, flags=re.MULTILINE))
    return kills
