"""A case for FLOP counters, and the arithmetic of its true cost.

Truth: matmul FLOPs, one multiply-accumulate being 2, attention by the full square, the backward pass by
dX and dW of each matmul where a gradient is needed. It is worked out by hand from the shapes; no counter
has a part in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from counter_models import Call
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Work:
    """``run`` does it all. A case that is one forward pass also has ``module`` and ``inputs``, for tools
    that call the module themselves."""

    run: Callable[[], object]
    module: nn.Module | None = None
    inputs: tuple[Any, ...] = ()


Build = Callable[[], Work]


@dataclass(frozen=True, kw_only=True)
class Case:
    """``again``: FLOPs that are run a second time, beyond ``truth``: a checkpoint's forward pass, the
    scores in the backward pass of fused attention. A counter may have them in or not.
    ``opaque``: an op without a formula hides the matmul, and a counter that doesn't see into it should
    refuse.
    ``wants``: a package that the case is made of."""

    name: str
    group: str
    build: Build
    truth: int
    again: int = 0
    opaque: bool = False
    wants: str = "torch"

    def work(self) -> Work:
        """Made ready to run, the same each time."""
        torch.manual_seed(0)
        return self.build()


Row = tuple[str, int, Build] | tuple[str, int, Build, int]


def cases(group: str, *rows: Row, opaque: bool = False, wants: str = "torch") -> list[Case]:
    """A case for each (name, truth, build) or (name, truth, build, again)."""
    return [
        Case(
            name=row[0],
            group=group,
            truth=row[1],
            build=row[2],
            again=row[3] if len(row) == 4 else 0,
            opaque=opaque,
            wants=wants,
        )
        for row in rows
    ]


def forward(module: nn.Module, *inputs: Any) -> Work:
    """One forward pass, without gradients."""

    def run() -> object:
        with torch.no_grad():
            return module(*inputs)

    return Work(run=run, module=module, inputs=inputs)


def call(function: Callable[..., object], *shapes: tuple[int, ...]) -> Build:
    """``function`` of random tensors. It should be a lambda: some tools patch torch's names, and see
    only what looks them up."""
    return lambda: forward(Call(function), *(torch.randn(shape) for shape in shapes))


def mm(rows: int, inner: int, columns: int) -> int:
    """(rows, inner) @ (inner, columns)."""
    return 2 * rows * inner * columns


def square(sequences: int, heads: int, queries: int, keys: int, width: int) -> int:
    """Scores and weighted values of attention, both of head width ``width``, over all pairs."""
    return 2 * mm(sequences * heads * queries, width, keys)
