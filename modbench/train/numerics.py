"""Device, precision and determinism of a process."""

import contextlib
import os
from contextlib import AbstractContextManager

import torch

from modbench.errors import UserError


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_device(wanted: str, precision: str, *, bfloat16: bool | None = None) -> None:
    """Raise a `UserError`: no GPU where ``wanted`` is "cuda"; or ``precision`` is "bfloat16" on a GPU
    without it. ``bfloat16``: whether the GPU has it; None: PyTorch is asked, which uses the GPU."""
    on = device()
    if wanted == "cuda" and on.type != "cuda":
        raise UserError(
            "the suite is made for a GPU ([sweep] device) and PyTorch finds none here; `modbench doctor "
            "--gpu` names the reason, `modbench run quick` runs on a CPU, and --set sweep.device=auto "
            "runs this suite there"
        )
    if bfloat16 is None and precision == "bfloat16":
        bfloat16 = on.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and not bfloat16:
        raise UserError(
            "the GPU has no bfloat16 (compute capability below 8), and [train] precision asks for it; "
            "use a newer GPU, or --set train.precision=float32"
        )


def precision(wanted: str, on: torch.device) -> torch.dtype:
    """The dtype of matmuls: ``"auto"`` is bfloat16 on GPUs and on CPUs with bfloat16 instructions."""
    if wanted == "auto":
        # Attention in bfloat16 raises where ATEN_CPU_CAPABILITY allows less than the processor has.
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        here = torch.cpu._is_avx512_bf16_supported() and wide
        on_gpu = on.type == "cuda"
        pays = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else here
        return torch.bfloat16 if pays else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def autocast(dtype: torch.dtype, on: torch.device) -> AbstractContextManager[None]:
    """Matmuls in ``dtype``, the rest in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(on.type, dtype=dtype)  # type: ignore[return-value]


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
