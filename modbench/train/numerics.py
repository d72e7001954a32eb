"""Device, precision and determinism of a process."""

import contextlib
import os
from contextlib import AbstractContextManager

import torch


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(wanted: str, on: torch.device) -> torch.dtype:
    """The dtype of matmuls: ``"auto"`` is bfloat16 on GPUs and on CPUs with bfloat16 instructions."""
    if wanted == "auto":
        pays = on.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if pays else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def autocast(dtype: torch.dtype, on: torch.device) -> AbstractContextManager[None]:
    """Matmuls in ``dtype``, the rest in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(on.type, dtype=dtype)  # type: ignore[return-value]


def attention_backend(on: torch.device) -> str:
    """The kernels that attention without a mask takes on the device ``on``: the first that PyTorch may
    choose."""
    cuda = torch.backends.cuda
    chosen = {
        "cudnn": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
    }
    return next((name for name, enabled in chosen.items() if enabled and on.type == "cuda"), "math")


def pin_attention() -> None:
    """Exclude cuDNN's attention in this process. A deterministic backward pass excludes it, and it makes
    a plan of half a second for each length of a decoded text."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def make_deterministic() -> None:
    """Make results equal, to the bit, on the same machine type with the same number of threads; of
    training and of what is timed, so that both run the same kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # torch.use_deterministic_algorithms does the same, and imports the compiler, which takes seconds.
    torch.set_deterministic_debug_mode("error")
    pin_attention()
    # Filling fresh memory, which the flag turns on, only helps to find reads of uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
