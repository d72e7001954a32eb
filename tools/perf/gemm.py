"""The ceiling: how fast this machine multiplies matrices of a model's own shapes, and nothing else.

S rows, K columns of what comes in, N of what goes out.
"""

from collections.abc import Mapping

import torch
from interleaved import Turns
from torch import Tensor, nn

#: In a row, so that all but the first find their matrices where they left them.
REPEATS = 5


class Gemm:
    """One matmul, called with anything; into memory that is there already."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self._left, self._right, self._out = left, right, left @ right
        rows, inner = left.shape
        self.flops = REPEATS * 2 * rows * inner * right.shape[1]

    def __call__(self, *_: object) -> None:
        for _ in range(REPEATS):
            torch.mm(self._left, self._right, out=self._out)


def gemms(
    model: nn.Module, rows: int, dtype: torch.dtype, on: torch.device | str = "cpu"
) -> dict[str, Gemm]:
    """The matmuls of a training step of ``rows`` tokens, each shape once: forward, dX and dW of each
    shape of matrix in ``model``."""
    found: dict[str, Gemm] = {}
    for columns, inner in sorted({tuple(p.shape) for p in model.parameters() if p.dim() == 2}):
        weight_NK = torch.randn(columns, inner, device=on, dtype=dtype)
        x_SK = torch.randn(rows, inner, device=on, dtype=dtype)
        dy_SN = torch.randn(rows, columns, device=on, dtype=dtype)
        name = f"{rows} x {inner} x {columns}"
        found[f"forward {name}"] = Gemm(x_SK, weight_NK.T)
        found[f"dX {name}"] = Gemm(dy_SN, weight_NK)
        found[f"dW {name}"] = Gemm(dy_SN.T, x_SK)
    return found


def ceiling(turns: Turns, matmuls: Mapping[str, Gemm]) -> tuple[float, str]:
    """FLOP/s of the fastest of ``matmuls``, which took part in ``turns``, and which that was."""
    speeds = {name: matmul.flops / turns.median(name) for name, matmul in matmuls.items()}
    fastest = max(speeds, key=lambda name: speeds[name])
    return speeds[fastest], fastest
