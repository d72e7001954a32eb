"""Peak memory of training steps, in a process of its own.

On a GPU, the allocator's peak. On a CPU, the peak of the resident set. Both above what the process held
when it had taken the same steps once and let go of all: code that a first run loads, and kernels that it
makes, are no model's memory.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modbench.train.out_of_memory import failed_allocation, out_of_memory_kills

if TYPE_CHECKING:
    import torch

STEPS = 2
#: Buffers go back to the kernel at once, and no page is larger than it need be: then the resident set is
#: what is held.
WEIGHING = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}


class KilledError(MemoryError):
    """The kernel killed the process that was measured, for want of memory."""


def peak_memory(spec: dict[str, Any], threads: int) -> dict[str, Any]:
    """``{"median", "iqr", "n", "stable"}`` in bytes of one fresh process that builds the cell's model
    and optimizer and takes training steps on made-up tokens. One process has no spread: its ``iqr``
    and ``stable`` are None.

    ``spec``: ``cell`` and ``plugins``, as a cell's specification has them.

    Raises:
        KilledError: the kernel killed the process. A kill by hand is none of that: the kernel must have
            counted one.
        MemoryError: the process ran out of memory; with what it said.
        RuntimeError: the process failed; its last line says why.
    """
    kills = out_of_memory_kills()
    threaded = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL")}
    environment = {**os.environ, **threaded, **WEIGHING}
    given = {"cell": spec["cell"], "plugins": spec["plugins"], "threads": threads}
    child = _child(json.dumps(given), environment)
    if child.returncode == -signal.SIGKILL:
        if out_of_memory_kills() > kills:
            raise KilledError("measuring memory")
        raise RuntimeError("measuring memory: killed by SIGKILL, by hand or for want of memory")
    if child.returncode != 0:
        last = child.stderr.strip().splitlines()[-1:] or ["no output"]
        raise RuntimeError(f"measuring memory failed with exit code {child.returncode}: {last[0]}")
    found = json.loads(child.stdout.splitlines()[-1])
    if "out_of_memory" in found:
        raise MemoryError(f"measuring memory: {found['out_of_memory']}")
    return {"median": found["peak_bytes"], "iqr": None, "n": 1, "stable": None}


def _child(given: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """The process that measures, and what it said: into files, since what a router forks holds a pipe
    open, and would be waited for."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
    ):
        command = [sys.executable, "-m", "modbench.measure.memory"]
        done = subprocess.run(
            command, input=given, stdout=out, stderr=said, text=True, env=environment, check=False
        )
        for file in (out, said):
            file.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, out.read(), said.read())


def let_go(on: "torch.device") -> None:
    """Give back what nobody refers to any more, errors and the frames that hold each other, too;
    PyTorch's allocator of a GPU keeps freed blocks."""
    import torch

    gc.collect()
    if on.type == "cuda":
        torch.cuda.empty_cache()


def resident_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` (the peak) of this process where Linux tells; elsewhere the peak."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Let the kernel's peak start from now. Where it can't, importing PyTorch may hide a small peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _measure(spec: dict[str, Any]) -> int:
    import torch

    from modbench.measure.footprint import Meter
    from modbench.model.config import ModelConfig
    from modbench.routing.build import build_model
    from modbench.routing.registry import build_router, check_source, load_plugin
    from modbench.routing.router import Router
    from modbench.train.config import TrainConfig
    from modbench.train.loop import build_optimizer, training_step
    from modbench.train.numerics import device, make_deterministic, precision

    torch.set_num_threads(spec["threads"])
    make_deterministic()
    for plugin in spec["plugins"]:
        load_plugin(plugin)
    cell = spec["cell"]
    check_source(cell["router"])
    train = TrainConfig(**cell["train"])
    config = ModelConfig(**cell["model"])
    router = build_router(cell["router"]["name"], cell["router"]["options"])
    on = device()

    def take_steps(config: ModelConfig, router: Router, train: TrainConfig) -> None:
        model = build_model(config, router).to(on).train()
        optimizer = build_optimizer(model, train)
        generator = torch.Generator().manual_seed(0)
        shape = (train.batch, train.sequence + 1)
        window_BT = torch.randint(config.vocabulary, shape, generator=generator).to(on)
        batch = window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
        for _ in range(STEPS):
            training_step(model, optimizer, train, batch, precision(train.precision, on))

    take_steps(config, router, train)
    meter = Meter(on)
    take_steps(config, router, train)
    return meter.peak()


def _answer(spec: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"peak_bytes": _measure(spec)}
    except Exception as error:
        failed = failed_allocation(error)
        if failed is None:
            raise
        return {"out_of_memory": str(failed) or type(failed).__name__}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # a router's own code may print
    print(f"\n{json.dumps(_answer(json.load(sys.stdin)))}", file=answers)
