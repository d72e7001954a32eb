"""One quantity of FLOPs under the three conventions.

``model``     causal attention costs its triangle, n(n+1)/2 query-key pairs: what the model needs.
``full``      attention costs the square, n * n pairs: what most papers and counters print.
``executed``  what kernels run on a CPU: causal attention by whole blocks of keys, its scores once more
              in the backward pass, activation checkpointing's second forward pass.

One multiply-accumulate is 2 FLOPs. All conventions count the logits, routers and predictors, nothing
for the embedding look-up, and for the backward pass dX and dW of each matmul, each only where a
gradient is needed. `modbench.accounting.literature` has the conventions of papers.
"""

from collections.abc import Callable
from operator import attrgetter

CONVENTIONS = ("model", "full", "executed")


class Flops:
    """One quantity under the three conventions. Immutable; no dataclass, whose construction would be
    half of what a closed form costs."""

    __slots__ = ("executed", "full", "model")

    def __init__(self, model: int, full: int, executed: int | None = None) -> None:
        self.model, self.full = model, full
        self.executed = full if executed is None else executed

    def __repr__(self) -> str:
        return f"Flops(model={self.model}, full={self.full}, executed={self.executed})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flops) and self._all == other._all

    def __hash__(self) -> int:
        return hash(self._all)

    @property
    def _all(self) -> tuple[int, int, int]:
        return self.model, self.full, self.executed

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.model + other.model, self.full + other.full, self.executed + other.executed)

    def __mul__(self, factor: int) -> "Flops":
        return Flops(self.model * factor, self.full * factor, self.executed * factor)

    def under(self, convention: str) -> int:
        """The integer that ``convention`` sees.

        Raises:
            ValueError: unknown convention.
        """
        return int(seen_by(convention)(self))


def seen_by(convention: str) -> Callable[[Flops], int]:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention '{convention}' is not known; known: {', '.join(CONVENTIONS)}")
    return attrgetter(convention)
