"""The environment of a measurement, without host, user or paths."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import modbench
from modbench.kernels import mode

#: Variables that change results or speed.
VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "KMP_AFFINITY",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED",
)


def environment(dtype: torch.dtype) -> dict[str, Any]:
    """The machine and the settings of this process; ``dtype`` is that of its matmuls."""
    entries: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "cpu": _cpu(),
        "instructions": _instructions(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": 1,
        "load": round(os.getloadavg()[0], 2),
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": mode(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "gpu": None,
        "cuda": None,
        "driver": None,
    }
    if torch.cuda.is_available():
        entries |= _gpu() | {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": _version("triton"),
            "attention": attention_backend(torch.device("cuda")),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return entries


def _gpu() -> dict[str, Any]:
    """Name, memory, driver, clocks and power limit of this process's GPU. Only a process that uses it
    asks PyTorch: that takes memory on the GPU."""
    if torch.cuda.is_initialized():
        properties = torch.cuda.get_device_properties(0)
        known = {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
        return known | _nvidia(f"GPU-{properties.uuid}")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return _nvidia(first) or {"gpu": torch.cuda.get_device_name(0)}


def gpu_has_bfloat16() -> bool:
    """Return False if nvidia-smi says that the first GPU has no bfloat16. PyTorch would use the GPU."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ("nvidia-smi", f"--id={first}", "--query-gpu=compute_cap", "--format=csv,noheader")
    capability = (_output(*query) or "").partition(".")[0]
    return not capability.isdigit() or int(capability) >= 8


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


#: Queries of nvidia-smi, and the names of the answers in a record.
_ASKED = {
    "name": "gpu",
    "driver_version": "driver",
    "clocks.max.sm": "gpu_clock_max",
    "clocks.max.mem": "gpu_memory_clock_max",
    "power.limit": "gpu_power_limit",
}


def _nvidia(gpu: str) -> dict[str, str]:
    """Return the answers of nvidia-smi on ``gpu`` (a UUID, since CUDA_VISIBLE_DEVICES may renumber GPUs,
    or a number); {} without it."""
    line = _output(
        "nvidia-smi", f"--id={gpu}", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"
    )
    return dict(zip(_ASKED.values(), line.split(", "), strict=True)) if line else {}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _instructions() -> str:
    """Instruction sets that decide the last digits, such as ``AVX512 AVX512_BF16``: processors of one
    name differ in them."""
    extras = {
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported,
        "AMX": torch.cpu._is_amx_tile_supported,
    }
    names = [name for name, is_supported in extras.items() if is_supported()]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *names])


def code_version() -> dict[str, Any]:
    """Version; in a checkout also the commit, and whether the package differs from it."""
    package = Path(modbench.__file__).parent
    commit = dirty = None
    if (package.parent / ".git").exists():
        git = ("git", "-C", str(package))
        commit = _output(*git, "rev-parse", "HEAD")
        changes = _output(*git, "status", "--porcelain", "--", str(package))
        dirty = None if changes is None else bool(changes)
    return {"version": modbench.__version__, "commit": commit, "dirty": dirty}


def _output(*command: str) -> str | None:
    """Standard output of ``command``; None if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


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
