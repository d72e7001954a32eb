"""Recognises a failed allocation, and its size where the error gives one."""

import re

LESS_MEMORY = "lower [train] micro_batch, or set recompute = true"  #: what helps

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
#: Messages of PyTorch on a CPU, PyTorch on a GPU, and numpy.
_SIZE = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+) (bytes|[KMGTP]iB)")
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
