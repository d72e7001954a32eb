"""The best that the machine can do: matmuls of a model's shapes, and copies.

R rows, I inner dimension, C columns.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from modbench.hf.config import matrices_of
from modbench.model.mlp import up_columns
from modbench.model.shape import HubConfig, Shape
from modbench.timing.benchmark_target import BenchmarkTarget
from modbench.timing.stopwatch import Stopwatch, nothing, sampled

#: Bytes of the copied tensor, larger than any cache.
COPIED = {"cpu": 2**28, "cuda": 2**30}
#: Matmuls in a run: launching one takes a GPU's host as long as a small one takes, so that it is ahead
#: of the GPU only from the second on.
IN_A_ROW = {"cpu": 1, "cuda": 8}


def gemm_shapes(model: Shape) -> dict[str, tuple[int, int]]:
    """Inner dimension and columns of the dense model's matmuls, by component."""
    if isinstance(model, HubConfig):
        return matrices_of(model)
    qkv = (model.heads + 2 * model.key_heads) * model.head_width
    return {
        "attention.qkv": (model.width, qkv),
        "attention.out": (model.width, model.width),
        "mlp up": (model.width, up_columns(model, model.hidden)),
        "mlp down": (model.hidden, model.width),
        "head": (model.width, model.vocabulary),
    }


@torch.no_grad()
def ceilings(
    subject: BenchmarkTarget, watch: Stopwatch, meanwhile: Callable[[], object] = nothing
) -> dict[str, Any]:
    """Measure ``gemm``, the FLOP/s of ``(rows, inner) @ (inner, columns)`` with the rows of one training
    batch, in the run's dtype and in float32; and ``copy_bytes_per_second``, bytes read and written. Each
    is the best sample, since disturbances only slow it down. ``meanwhile``: see `sampled`."""
    time, on = subject.time, subject.on

    def best(run: Callable[[], object]) -> float:
        taken = sampled(watch, run, samples=time.samples, warm_up=time.warm_up, meanwhile=meanwhile)
        return min(taken.seconds)

    def matmul_seconds(dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
        x_RI = torch.randn(rows, inner, device=on).to(dtype)
        weight_CI = torch.randn(columns, inner, device=on).to(dtype)
        times = range(IN_A_ROW[on.type])
        return best(lambda: [F.linear(x_RI, weight_CI) for _ in times]) / len(times)

    rows = subject.train.batch * subject.train.sequence
    gemms = [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "component": name,
            "rows": rows,
            "inner": inner,
            "columns": columns,
            "flops_per_second": 2 * rows * inner * columns / matmul_seconds(dtype, rows, inner, columns),
        }
        for dtype in dict.fromkeys((subject.dtype, torch.float32))
        for name, (inner, columns) in gemm_shapes(subject.config).items()
    ]
    source = torch.ones(COPIED[on.type], dtype=torch.uint8, device=on)
    target = torch.zeros_like(source)
    seconds = best(lambda: target.copy_(source))
    return {"gemm": gemms, "copy_bytes_per_second": 2 * len(source) / seconds}
