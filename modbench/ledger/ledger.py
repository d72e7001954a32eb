"""Ledger: the FLOPs of a workload by layer, component and direction."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from modbench.ledger.cpu_attention import backward_width
from modbench.ledger.flops import Flops, seen_by
from modbench.ledger.workload import Workload

#: ``update``: the optimizer's step, which like ``recompute`` only convention ``executed`` counts.
Direction = Literal["forward", "backward", "recompute", "update"]
#: Layer index of parts outside all layers (the head).
OUTSIDE = -1

Key = tuple[int, str, Direction]


class Ledger:
    """FLOPs by (layer, component, direction). Adds, multiplies, and is summed under a convention."""

    def __init__(self, entries: Mapping[Key, Flops] | None = None) -> None:
        self.entries: dict[Key, Flops] = {} if entries is None else dict(entries)

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
        entries: dict[Key, Flops] = {}
        for part in parts:
            if entries.keys().isdisjoint(part.entries):  # the usual case
                entries |= part.entries
                continue
            for key, flops in part.entries.items():
                known = entries.get(key)
                entries[key] = flops if known is None else known + flops
        return cls(entries)

    def recomputed(self) -> "Ledger":
        """Return the FLOPs of running the forward part again in the backward pass; only ``executed``
        counts them."""
        return Ledger(
            {
                (layer, component, "recompute"): Flops(0, 0, flops.executed)
                for (layer, component, direction), flops in self.entries.items()
                if direction == "forward"
            }
        )

    def total(self, convention: str = "model", direction: Direction | None = None) -> int:
        """Sum the FLOPs under ``convention``, of one ``direction`` or of all."""
        seen = seen_by(convention)
        return int(
            sum(
                seen(flops)
                for (_, _, towards), flops in self.entries.items()
                if direction in (None, towards)
            )
        )

    def by_component(self, convention: str = "model") -> dict[str, int]:
        """Sum the FLOPs under ``convention`` by component over all layers, in order of appearance."""
        seen = seen_by(convention)
        sums = dict[str, int]()
        for (_, component, _), flops in self.entries.items():
            sums[component] = sums.get(component, 0) + int(seen(flops))
        return sums


def matmul(
    workload: Workload,
    layer: int,
    component: str,
    *,
    rows: int,
    inner: int,
    columns: int,
    input_gradient: bool | None = None,
    weight_gradient: bool = True,
) -> Ledger:
    """Ledger of ``(rows, inner) @ (inner, columns)``: 2 * rows * inner * columns, and in training the
    same for the gradient of each operand that needs one. ``input_gradient`` defaults to the
    workload's."""
    flops = 2 * rows * inner * columns
    entries: dict[Key, Flops] = {(layer, component, "forward"): Flops(flops, flops)}
    if workload.phase == "train":
        gradients = (
            workload.input_gradient if input_gradient is None else input_gradient
        ) + weight_gradient
        if gradients:
            entries[layer, component, "backward"] = Flops(flops * gradients, flops * gradients)
    return Ledger(entries)


def attention(
    workload: Workload,
    layer: int,
    *,
    heads: int,
    head_width: int,
    value_width: int | None = None,
    gradient: bool | None = None,
    pairs: Flops | None = None,
    fused: bool = True,
) -> Ledger:
    """Ledger of the scores and weighted values of causal self-attention: a dot product of ``head_width``
    and one of ``value_width`` per head and query-key pair; in training twice that for dQ, dK, dP and dV,
    if a ``gradient`` is needed (default: the workload's ``input_gradient``). ``pairs`` defaults to the
    workload's. A fused kernel recomputes the scores in the backward pass, which only ``executed``
    counts; otherwise, and if values are of another width than keys, matmuls compute the whole square."""
    value_width = head_width if value_width is None else value_width
    pairs = workload.pairs() if pairs is None else pairs
    each = 2 * heads * (head_width + value_width)
    again = 2 * heads * backward_width(head_width, value_width)
    if not fused or head_width != value_width:
        pairs = Flops(pairs.model, pairs.full)
        again = 2 * each
    forward = pairs * each
    entries: dict[Key, Flops] = {(layer, "attention.scores", "forward"): forward}
    if workload.phase == "train" and (workload.input_gradient if gradient is None else gradient):
        entries[layer, "attention.scores", "backward"] = Flops(
            forward.model * 2, forward.full * 2, pairs.executed * again
        )
    return Ledger(entries)
