"""What tells processors apart on which another way is the faster one.

Two were measured (`nox -s perf`): an EPYC of AMD's with AVX-512, and a Xeon of Intel's with units for
matrices (AMX). All of AMD's are taken to be like the first; on any other, what differs between the two
is left to PyTorch.
"""

import os
from pathlib import Path

import torch

_INFO = Path("/proc/cpuinfo")


def maker() -> str:
    """Of the processor, as it calls itself, such as "GenuineIntel"; empty where nobody tells (Linux and
    Windows do, of x86)."""
    try:
        with _INFO.open(errors="replace") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
            return next(named, "")
    except OSError:
        return os.environ.get("PROCESSOR_IDENTIFIER", "").rpartition(", ")[2]


def slow_with_few(maker: str) -> bool:
    """Whether PyTorch's own kernels for a few rows of float32, and for the attention of a single query
    to many keys, take longer on a processor of ``maker``'s than matmuls that are turned round, or made
    of several."""
    return maker == "AuthenticAMD"


def matrix_units() -> bool:
    """Whether it has AMX for bfloat16, as far as PyTorch tells: matmuls are so fast there that all
    between them shows."""
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.11 may not tell
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


SLOW_FEW = slow_with_few(maker())
MATRIX_UNITS = matrix_units()
