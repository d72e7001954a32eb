"""What tells processors apart on which another way is the faster one.

Two were measured (`nox -s perf`): an EPYC of AMD's with AVX-512, and a Xeon of Intel's with units for
matrices (AMX). On any other, what differs between these two is left to PyTorch.
"""

import platform
from pathlib import Path

import torch

_INFO = Path("/proc/cpuinfo")


def maker() -> str:
    """Of the processor, as it calls itself, such as "GenuineIntel"; empty where nobody tells."""
    if not _INFO.exists():
        return platform.processor().split(" ")[-1]
    with _INFO.open() as lines:
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
        return next(named, "")


def matrix_units() -> bool:
    """Whether it has AMX for bfloat16, as far as PyTorch tells: matmuls are so fast there that all
    between them shows."""
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.11 may not tell
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


#: For a few rows of float32, and for the attention of a single query to many keys, PyTorch's own kernels
#: take longer than matmuls that are turned round, or made of several.
SLOW_FEW = maker() == "AuthenticAMD"
MATRIX_UNITS = matrix_units()
