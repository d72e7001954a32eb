"""One quantity of FLOPs under the three conventions.

``model``     causal attention costs its triangle, n(n+1)/2 query-key pairs: what the model needs.
``full``      attention costs the square, n * n pairs: what most papers and counters report.
``executed``  what kernels run on a CPU: causal attention in whole blocks of keys, scores recomputed in
              the backward pass, the second forward pass of activation checkpointing, the matmuls of the
              optimizer's step.

One multiply-accumulate is 2 FLOPs. All conventions count logits, routers and predictors, and in the
backward pass dX and dW of each matmul where a gradient is needed; the embedding look-up costs 0.
`modbench.accounting.literature` has the conventions of papers.
"""

from collections.abc import Callable
from operator import attrgetter

CONVENTIONS = ("model", "full", "executed")


class Flops:
    """One quantity under the three conventions. Immutable by agreement; not a dataclass, whose
    construction would take half the time of a closed form."""

    __slots__ = ("executed", "full", "model")

    def __init__(self, model: int, full: int, executed: int | None = None) -> None:
        self.model, self.full = model, full
        self.executed = full if executed is None else executed

    def __repr__(self) -> str:
        return f"Flops(model={self.model}, full={self.full}, executed={self.executed})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flops) and _all(self) == _all(other)

    def __hash__(self) -> int:
        return hash(_all(self))

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.model + other.model, self.full + other.full, self.executed + other.executed)

    def __mul__(self, factor: int) -> "Flops":
        return Flops(self.model * factor, self.full * factor, self.executed * factor)


_all = attrgetter(*CONVENTIONS)


def seen_by(convention: str) -> Callable[[Flops], int]:
    """Return a function that reads a `Flops` under ``convention``. Raise a `ValueError` for an unknown
    one."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention '{convention}' is not known; known: {', '.join(CONVENTIONS)}")
    return attrgetter(convention)
