"""MKL as an outside witness of what is executed on a CPU: it can print each matrix product that it is
asked for, with its shape. What PyTorch runs in float32 and float64 comes down to these, attention's
blocks and a backward pass included, whatever the counter believes of them.

What it takes to miss none, found with PyTorch 2.13:
- ``mm``, ``addmm``, ``mv``, ``dot``, grouped matmul in float32, convolutions on small images and the
  fused attention kernel call MKL at every size, down to one row or column; a product with an empty side
  isn't called, and costs 0.
- ``bmm`` and ``baddbmm`` call a batched routine, which prints addresses for shapes; and where one
  product has fewer than 400 multiply-accumulates, a loop of PyTorch's own. So each product of a batch is
  run by itself here, below the counter, which still sees the batch.
- ``addr``, bfloat16 and float16 (oneDNN) never come to MKL.
"""

import json
import re
import subprocess
import sys

_CHILD = """
import ctypes, json, sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
from modbench import FlopCounter

class OneByOne(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if func is aten.bmm.default:
            return torch.stack([torch.mm(*pair) for pair in zip(*args)])
        if func is aten.baddbmm.default:
            triples = zip(args[0].expand(args[1].shape[0], -1, -1), *args[1:])
            return torch.stack([torch.addmm(*three, **kwargs or {}) for three in triples])
        return func(*args, **kwargs or {})

torch.set_num_threads(1)
scope = {}
exec(sys.stdin.read(), scope)
flush = ctypes.CDLL(None).fflush
for name, run in scope["runs"]().items():
    with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON), OneByOne(), FlopCounter() as counter:
        run()
    flush(None)
    print(json.dumps([name, counter.executed]), flush=True)
"""

_LINE = re.compile(r"MKL_VERBOSE ([A-Za-z0-9_]+)\(([^)]*)\)")


def executed(program: str, *, timeout: float = 600) -> dict[str, tuple[int, int]]:
    """Runs ``program`` in a fresh process. It defines ``runs()``, which returns functions of no
    arguments by name; for each, the FLOPs that MKL was asked for and those that `FlopCounter.executed`
    says of the same run.

    Raises:
        RuntimeError: the program failed, or MKL printed a routine whose cost can't be read.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=program, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        raise RuntimeError(f"the program under MKL failed: {done.stderr[-2000:]}")
    found: dict[str, tuple[int, int]] = {}
    asked = 0
    for line in done.stdout.splitlines():
        if line.startswith("["):
            name, counted = json.loads(line)
            found[name] = (asked, counted)
            asked = 0
        elif (call := _LINE.match(line)) is not None:
            asked += _flops(call[1].upper(), call[2].split(","))
    return found


def _flops(routine: str, arguments: list[str]) -> int:
    if routine in ("SGEMM", "DGEMM"):
        rows, columns, inner = map(int, arguments[2:5])
        return 2 * rows * columns * inner
    if routine in ("SGEMV", "DGEMV"):
        return 2 * int(arguments[1]) * int(arguments[2])
    if routine in ("SDOT", "DDOT"):
        return 2 * int(arguments[0])
    raise RuntimeError(f"MKL ran {routine}, whose cost its output doesn't tell")
