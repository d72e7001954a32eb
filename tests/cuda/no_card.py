"""Run pytest with `no_card.cpp` preloaded, so that PyTorch without CUDA runs fake CUDA tensors:
``python tests/cuda/no_card.py``; arguments go to pytest. Where that can't be, the tests are skipped."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
#: Versions of PyTorch whose headers and internals `no_card.cpp` has been tried with.
MADE_FOR = ("2.13",)


def compiler() -> str | None:
    """The C++ compiler; None if there is none."""
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    return next(filter(None, map(shutil.which, wanted)), None)


def missing() -> str:
    """What this machine lacks to build `no_card.cpp`; empty if nothing."""
    version = torch.__version__
    if sys.platform != "linux":
        return "LD_PRELOAD needs Linux"
    if torch.version.cuda is not None:
        return f"PyTorch {version} has CUDA kernels; install its CPU build to run fake CUDA tensors"
    if version.rpartition(".")[0] not in MADE_FOR:
        return f"fake CUDA tensors are tried with PyTorch {', '.join(MADE_FOR)}, and this is {version}"
    return "" if compiler() else "no C++ compiler"


def why_not() -> str:
    """Why this process can't run fake CUDA tensors; empty if it can."""
    on = torch.accelerator.current_accelerator()
    preloaded = torch.version.cuda is None and on is not None and on.type == "cuda"
    return "" if preloaded else missing() or "no_card.cpp is not preloaded; run: nox -s tests-cuda"


def build(folder: Path) -> Path:
    """Compile `no_card.cpp` into ``folder``."""
    library, of_torch = folder / "no_card.so", Path(torch.__file__).parent
    lib = of_torch / "lib"
    words = [str(compiler()), "-std=c++20", "-shared", "-fPIC", str(HERE / "no_card.cpp")]
    words += [f"-I{of_torch / 'include'}", f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu"]
    subprocess.run([*words, "-o", str(library)], check=True)
    return library


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        preload = {} if missing() else {"LD_PRELOAD": str(build(Path(folder)))}
        words = [sys.executable, "-m", "pytest", str(HERE), "-rs", *sys.argv[1:]]
        return subprocess.run(words, env=os.environ | preload, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
