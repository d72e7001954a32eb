"""The command `modbench doctor`."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

#: GB of memory that the largest rows of the gpu suite need: an estimate from their parameters and
#: activations, not measured.
_ROOM = 62
_ASKED = "index,name,driver_version,compute_cap,memory.total,memory.used,mig.mode.current,compute_mode"


def doctor(*, gpu: bool = False) -> int:
    """Say what works on this machine, what does not, and what to do about it. The exit code is 0 where
    suites run; with --gpu, where `nox -s bench-gpu` does.

    Example: modbench doctor

    Args:
        gpu: the main job is measuring on a GPU
    """
    failed = False
    for verdict, sentence in [*_packages(), *_torch("fails" if gpu else "note"), _cache()]:
        failed |= verdict == "fails"
        print(f"{verdict:<5}  {sentence}", flush=True)
    what = "do not work: see the lines that begin with fails" if failed else "work"
    print(f"\ntraining and measuring {'on a GPU' if gpu else 'on this machine'} {what}")
    return int(failed)


def _packages() -> Iterator[tuple[str, str]]:
    yield "ok", f"Python {sys.version.split()[0]}, modbench {version('modbench')}"
    for package, extra in (("lm-eval", ""), ("transformers", "[hf]"), ("fvcore", ""), ("ray", "[ray]")):
        try:
            yield "ok", f"{package} {version(package)}"
        except PackageNotFoundError:
            yield (
                "note",
                f"{package} is not installed: what needs it can't run; in the clone of modbench, run "
                f"`python -m pip install '.{extra}'`",
            )
    yield "ok", f"Slurm: {shutil.which('sbatch') or 'no sbatch, jobs run on this machine'}"
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        yield "note", "no C++ compiler: steps are not compiled on a CPU"


def _torch(bad: str) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import torch

            there = torch.cuda.is_available()
    except Exception as error:  # whatever a broken installation raises
        yield "fails", f"PyTorch can't be imported ({error}); install it again"
        return
    built = torch.version.cuda
    yield "ok", f"PyTorch {torch.__version__}, {f'for CUDA {built}' if built else 'for CPUs'}"
    yield from ((bad, f"PyTorch says: {' '.join(str(one.message).split())}") for one in caught)
    if os.environ.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        yield bad, "CUDA_LAUNCH_BLOCKING is set: kernels wait, and no time is right; unset it"
    if not there:
        why = "update the driver, or install a PyTorch built for it" if built else "PyTorch is for CPUs"
        yield bad, f"no GPU that PyTorch can use: {why}; on the CPU: nox -s bench, modbench run quick"
        return
    yield from _cards(bad)
    if find_spec("triton") is None:
        yield bad, "triton is missing: steps can't be compiled; install it or set compile to 'off'"
    if not torch.backends.cuda.is_flash_attention_available():
        yield "note", "this PyTorch has no flash attention: attention is slower and needs more memory"


def _cards(bad: str) -> Iterator[tuple[str, str]]:
    """Check each card by nvidia-smi: asking PyTorch would take memory on it."""
    cards = _nvidia(f"--query-gpu={_ASKED}")
    if not cards:
        yield "note", "nvidia-smi is missing or fails: memory, load and driver of GPUs are not known"
    for index, name, driver, capability, *memory, mig, mode in cards:
        total, used = (int(each) * 2**20 / 1e9 if each.isdigit() else 0 for each in memory)
        yield "ok", f"GPU {index}: {name}, driver {driver}, {total - used:.0f} of {total:.0f} GB free"
        if capability.partition(".")[0].isdigit() and float(capability) < 8:
            yield bad, f"GPU {index} is too old for bfloat16; use a newer one, or precision = 'float32'"
        if mig == "Enabled":
            yield "note", f"GPU {index} is split (MIG): a part is timed, and its clocks are not known"
        if 0 < total < _ROOM:
            less = "use --set train.micro_batch=2, or name rows of 124M after --only"
            yield "note", f"GPU {index} is too small for the largest rows of the gpu suite; {less}"
        if used > total / 10:
            yield "note", f"GPU {index} is in use: rows may not fit and times are too long; free it"
        if mode == "Prohibited":
            yield bad, f"GPU {index} takes no work (compute mode); nvidia-smi -i {index} -c 0"
    for name, process, mebibytes in _nvidia("--query-compute-apps=gpu_name,pid,used_memory"):
        yield "note", f"process {process} uses {mebibytes} MiB of a GPU ({name})"


def _nvidia(query: str) -> list[list[str]]:
    """The fields of each line on the GPUs of this process; none if nvidia-smi is missing or fails."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"] + [f"--id={visible}"] * bool(
        visible
    )
    with suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line.split(", ") for line in done.stdout.splitlines()]
    return []


def _cache() -> tuple[str, str]:
    from modbench.data.cache_folder import cache_folder

    folder = cache_folder()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        return "fails", f"the cache {folder} can't be written; set MODBENCH_CACHE to a folder that can"
    free = shutil.disk_usage(there).free / 1e9
    return (
        "ok" if free > 2 else "fails",
        f"cache {folder}: {free:.0f} GB free (2 are needed; MODBENCH_CACHE moves it)",
    )
