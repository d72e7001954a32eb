"""What arrives (Load), and what is spent on it (Ledger): integers, pure Python, nothing imported.

FLOPs are matmul FLOPs, one multiply-accumulate being 2. A convention is a view on a ledger:

``model``  causal attention costs its triangle, n(n+1)/2 query-key pairs: what the model needs.
``full``   attention costs the square, n * n pairs: what most papers and counters print.

Both count the logits, routers and predictors, nothing for the embedding look-up, and for the backward
pass dX and dW of each matmul, each only where a gradient is needed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from modbench.errors import UserError, known_names

Phase = Literal["forward", "train"]
PHASES: tuple[Phase, ...] = ("forward", "train")
Direction = Literal["forward", "backward"]
CONVENTIONS = ("model", "full")
#: Index in a sequence's place of a layer, for what stands outside all layers (the head).
OUTSIDE = -1

#: Realised routing: (layer, what was routed) -> counts, one per sequence or one in all.
Counts = Mapping[tuple[int, str], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What arrives at a layer: ``lengths[i]`` tokens of sequence i, and what shall be counted.

    ``counts`` holds the routing that a forward pass realised (`Trace.counts`); where it is silent, a
    layer answers with what its options promise (nominal). With ``padding``, the slots that pad each
    sequence to the longest are counted wherever they are computed (dispatched).

    Raises:
        UserError: unknown phase, no sequence, or a negative length.
    """

    lengths: tuple[int, ...]
    phase: Phase = "forward"
    padding: bool = False
    counts: Counts = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise UserError(f"phase '{self.phase}' is not known; {known_names(self.phase, PHASES)}")
        if not self.lengths or min(self.lengths) < 0:
            raise UserError(
                f"lengths {self.lengths}: a load needs one or more sequences of 0 or more tokens"
            )

    @classmethod
    def uniform(cls, sequences: int, length: int, phase: Phase = "forward") -> "Load":
        """``sequences`` sequences of ``length`` tokens each."""
        return cls(lengths=(length,) * sequences, phase=phase)

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens that are really there."""
        return sum(self.lengths)

    @property
    def slots(self) -> int:
        """Rows that a dense matmul computes."""
        return self.sequences * max(self.lengths) if self.padding else self.tokens

    @property
    def pairs(self) -> "Flops":
        """Query-key pairs of causal self-attention: the exact triangles and the full squares."""
        lengths = (max(self.lengths),) * self.sequences if self.padding else self.lengths
        return Flops(model=sum(n * (n + 1) // 2 for n in lengths), full=sum(n * n for n in lengths))

    def routed(self, tokens_per_sequence: int | Sequence[int]) -> "Load":
        """The same load narrowed to so many tokens of each sequence."""
        if isinstance(tokens_per_sequence, int):
            tokens_per_sequence = (tokens_per_sequence,) * self.sequences
        return replace(self, lengths=tuple(tokens_per_sequence))


@dataclass(frozen=True)
class Flops:
    """One quantity under the two conventions."""

    model: int
    full: int

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.model + other.model, self.full + other.full)

    def __mul__(self, factor: int) -> "Flops":
        return Flops(self.model * factor, self.full * factor)

    def under(self, convention: str) -> int:
        """The integer that ``convention`` sees.

        Raises:
            UserError: unknown convention.
        """
        if convention not in CONVENTIONS:
            raise UserError(
                f"convention '{convention}' is not known; {known_names(convention, CONVENTIONS)}"
            )
        return self.model if convention == "model" else self.full


Key = tuple[int, str, Direction]


class Ledger:
    """FLOPs by (layer, component, direction). Adds, multiplies, and is summed under a convention."""

    def __init__(self, entries: Mapping[Key, Flops] | None = None) -> None:
        self.entries: dict[Key, Flops] = dict(entries or {})

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger.sum((self, other))

    def __mul__(self, factor: int) -> "Ledger":
        return Ledger({key: flops * factor for key, flops in self.entries.items()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self.entries == other.entries

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[tuple[Key, Flops]]:
        return iter(self.entries.items())

    @classmethod
    def sum(cls, parts: Iterable["Ledger"]) -> "Ledger":
        total = cls()
        for part in parts:
            for key, flops in part.entries.items():
                known = total.entries.get(key)
                total.entries[key] = flops if known is None else known + flops
        return total

    def total(self, convention: str = "model", direction: Direction | None = None) -> int:
        """FLOPs under ``convention``, forward and backward together or one ``direction`` alone."""
        return sum(
            flops.under(convention)
            for (_, _, towards), flops in self.entries.items()
            if direction in (None, towards)
        )

    def by_component(self, convention: str = "model") -> dict[str, int]:
        """FLOPs under ``convention`` by component, all layers together, in order of appearance."""
        sums: dict[str, int] = {}
        for (_, component, _), flops in self.entries.items():
            sums[component] = sums.get(component, 0) + flops.under(convention)
        return sums


def _entries(load: Load, layer: int, component: str, forward: Flops, backward: int) -> Ledger:
    entries: dict[Key, Flops] = {(layer, component, "forward"): forward}
    if load.phase == "train" and backward:
        entries[layer, component, "backward"] = forward * backward
    return Ledger(entries)


def matmul(
    load: Load,
    layer: int,
    component: str,
    *,
    rows: int,
    inner: int,
    columns: int,
    input_gradient: bool = True,
    weight_gradient: bool = True,
) -> Ledger:
    """``(rows, inner) @ (inner, columns)``: 2 * rows * inner * columns, and as much again in the
    backward pass for the gradient of each operand that needs one."""
    flops = 2 * rows * inner * columns
    return _entries(load, layer, component, Flops(flops, flops), input_gradient + weight_gradient)


def attention(load: Load, layer: int, *, heads: int, head_width: int) -> Ledger:
    """Scores and weighted values of causal self-attention: two matmuls of ``head_width`` per head and
    query-key pair; backward twice the forward (dQ, dK, dP, dV; the recomputed scores are not needed by
    the model and are left to the convention ``executed``)."""
    return _entries(load, layer, "attention.scores", load.pairs * (4 * heads * head_width), 2)
