"""What arrives (Load), and what is spent on it (Ledger): integers, pure Python, no torch.

FLOPs are matmul FLOPs, one multiply-accumulate being 2. A convention is a view on a ledger:

``model``     causal attention costs its triangle, n(n+1)/2 query-key pairs: what the model needs.
``full``      attention costs the square, n * n pairs: what most papers and counters print.
``executed``  what kernels run on a CPU: causal attention by whole blocks of keys, its scores once more
              in the backward pass, activation checkpointing's second forward pass.

All count the logits, routers and predictors, nothing for the embedding look-up, and for the backward
pass dX and dW of each matmul, each only where a gradient is needed. What papers count instead is in
`modbench.flops.literature`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import attrgetter, index
from typing import Any, Literal

from modbench.errors import UserError, known_names
from modbench.flops.kernels import PYTORCH_BLOCK, backward_width, executed_pairs, is_fused

Phase = Literal["forward", "train", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("forward", "train", "prefill", "decode")
Direction = Literal["forward", "backward", "recompute"]
CONVENTIONS = ("model", "full", "executed")
#: Index in a sequence's place of a layer, for what stands outside all layers (the head).
OUTSIDE = -1

#: Realised routing: (layer, what was routed) -> counts, one per sequence or one in all.
Counts = Mapping[tuple[int, str], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What arrives at a layer: ``lengths[i]`` new tokens of sequence i, and what shall be counted.

    Phases: ``forward`` scores every token; ``train`` is a forward and a backward pass; ``prefill`` reads
    a prompt into a cache and wants the logits of each sequence's last token alone; ``decode`` takes the
    new tokens one at a time, each with the logits that follow it. ``past[i]`` tokens of sequence i are
    in the cache already; none by default.

    ``counts`` holds the routing that a forward pass realised (`Trace.counts`); where it is silent, a
    layer answers with what its options promise (nominal). With ``padding``, the slots that pad each
    sequence to the longest are counted wherever they are computed (dispatched). ``checkpoint``: each
    layer's forward pass is run again in the backward pass. ``input_gradient``: the backward pass goes
    on to what lies before.

    Raises:
        UserError: unknown phase, no sequence, a length that is negative or no whole number, a past where
            there can be none, or dispatched decoding of more than one token.
    """

    lengths: tuple[int, ...]
    phase: Phase = "forward"
    past: tuple[int, ...] = ()
    padding: bool = False
    checkpoint: bool = False
    counts: Counts = field(default_factory=dict)
    input_gradient: bool = True

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise UserError(f"phase '{self.phase}' is not known; {known_names(self.phase, PHASES)}")
        for name in ("lengths", "past"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        if not self.lengths or min(self.lengths) < 0:
            raise UserError(
                f"lengths {self.lengths}: a load needs one or more sequences of 0 or more tokens"
            )
        if not self.past:
            object.__setattr__(self, "past", (0,) * len(self.lengths))
        if len(self.past) != len(self.lengths) or min(self.past) < 0:
            raise UserError(
                f"past {self.past}: it needs 0 or more cached tokens for each of "
                f"{len(self.lengths)} sequences"
            )
        if any(self.past) and self.phase == "train":
            raise UserError(f"past {self.past}: nothing is cached in phase 'train'; leave it out")
        if self.padding and self.phase == "decode" and max(self.lengths) > 1:
            raise UserError(
                f"lengths {self.lengths}: what decoding dispatches is known one token at a time; "
                "give lengths of 0 or 1"
            )

    @classmethod
    def uniform(
        cls, sequences: int, length: int, phase: Phase = "forward", past: int = 0, **others: Any
    ) -> "Load":
        """``sequences`` sequences of ``length`` new tokens each, after ``past`` cached ones."""
        lengths, before = (length,) * sequences, (past,) * sequences
        return cls(lengths=lengths, phase=phase, past=before, **others)

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """New tokens that are really there."""
        return sum(self.lengths)

    @property
    def slots(self) -> int:
        """Rows that a dense matmul computes."""
        return self.sequences * max(self.lengths) if self.padding else self.tokens

    @property
    def scored(self) -> int:
        """Rows whose logits are computed."""
        return self.sequences if self.phase == "prefill" else self.slots

    def pairs(self, window: int | None = None, block: int = PYTORCH_BLOCK) -> "Flops":
        """Query-key pairs of causal self-attention: the exact triangles, the full squares, and what
        kernels run that take ``block`` queries at a time. A token sees the cached ones and the new ones
        up to itself, of them the last ``window``."""
        return _pairs(self.lengths, self.past, self.padding, self.phase == "decode", window, block)

    def routed(
        self,
        tokens_per_sequence: int | Sequence[int],
        past_per_sequence: int | Sequence[int] = 0,
    ) -> "Load":
        """The same load narrowed to so many new tokens of each sequence, of which so many earlier ones
        were let in; sequences without a new one are left out, unless that is all of them."""
        lengths = _each(tokens_per_sequence, self.sequences)
        past = _each(past_per_sequence, self.sequences)
        if any(lengths):
            kept = [i for i, new in enumerate(lengths) if new]
            lengths, past = tuple(lengths[i] for i in kept), tuple(past[i] for i in kept)
        return replace(self, lengths=lengths, past=past)

    def after(self, trained: bool) -> "Load":
        """The load of what follows a part of the model that has trained parameters, or has none."""
        return self if self.input_gradient or not trained else replace(self, input_gradient=True)


@lru_cache(maxsize=1024)  # the layers of a model ask for the same
def _pairs(
    lengths: tuple[int, ...],
    past: tuple[int, ...],
    padding: bool,
    decoding: bool,
    window: int | None,
    block: int,
) -> "Flops":
    longest = max(lengths)
    widest = max(n + p for n, p in zip(lengths, past, strict=True))
    plain = not any(past) and window is None  # causal attention that needs no mask
    total = Flops(0, 0)
    for (new, before), sequences in Counter(zip(lengths, past, strict=True)).items():
        rows, keys = (longest, widest) if padding else (new, before + new)
        needed = _triangle(rows if plain else new, before, window)
        if not plain:  # a padded row sees what the last real one does
            needed += (rows - new) * min(before + new, window or keys)
        if decoding:
            # Token by token there is no later key to be left out.
            each = Flops(needed, rows * keys if padding else _triangle(new, before))
        else:
            executed = executed_pairs(rows, keys, block) if plain else rows * keys
            each = Flops(needed, rows * keys, executed)
        total += each * sequences
    return total


def _whole(name: str, numbers: Sequence[int]) -> tuple[int, ...]:
    """Python's own integers, of whatever kind they come: they never overflow."""
    try:
        return tuple(map(index, numbers))
    except TypeError as error:
        raise UserError(f"{name} {numbers}: a load needs whole numbers, one of each sequence") from error


def _each(value: int | Sequence[int], sequences: int) -> tuple[int, ...]:
    return (value,) * sequences if isinstance(value, int) else tuple(value)


def stretch(
    share: Callable[[int], int], lengths: Sequence[int], past: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """New and earlier tokens that are let in where ``share(n)`` of any first n are. What is let in from
    a stretch is the difference of its ends, so that decoding token by token comes to what the whole
    sequence does."""
    before = tuple(share(p) if p else 0 for p in past)
    ends = (n + p for n, p in zip(lengths, past, strict=True))
    return tuple((share(end) if end else 0) - b for end, b in zip(ends, before, strict=True)), before


def _triangle(new: int, past: int, window: int | None = None) -> int:
    """Keys that ``new`` tokens see after ``past`` others, themselves included; at most ``window``."""
    if window is None or past + new <= window:
        return new * past + new * (new + 1) // 2
    growing = max(0, window - past)
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


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
            UserError: unknown convention.
        """
        return int(_seen_by(convention)(self))


def _seen_by(convention: str) -> Callable[[Flops], int]:
    if convention not in CONVENTIONS:
        raise UserError(
            f"convention '{convention}' is not known; {known_names(convention, CONVENTIONS)}"
        )
    return attrgetter(convention)


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
            if entries.keys().isdisjoint(part.entries):  # as most parts of a model are
                entries |= part.entries
                continue
            for key, flops in part.entries.items():
                known = entries.get(key)
                entries[key] = flops if known is None else known + flops
        return cls(entries)

    def recomputed(self) -> "Ledger":
        """What running the forward part again in the backward pass executes; no convention that asks
        what the model needs sees it."""
        return Ledger(
            {
                (layer, component, "recompute"): Flops(0, 0, flops.executed)
                for (layer, component, direction), flops in self.entries.items()
                if direction == "forward"
            }
        )

    def total(self, convention: str = "model", direction: Direction | None = None) -> int:
        """FLOPs under ``convention``, forward and backward together or one ``direction`` alone."""
        seen = _seen_by(convention)
        return int(
            sum(
                seen(flops)
                for (_, _, towards), flops in self.entries.items()
                if direction in (None, towards)
            )
        )

    def by_component(self, convention: str = "model") -> dict[str, int]:
        """FLOPs under ``convention`` by component, all layers together, in order of appearance."""
        seen, sums = _seen_by(convention), dict[str, int]()
        for (_, component, _), flops in self.entries.items():
            sums[component] = sums.get(component, 0) + int(seen(flops))
        return sums


def matmul(
    load: Load,
    layer: int,
    component: str,
    *,
    rows: int,
    inner: int,
    columns: int,
    input_gradient: bool | None = None,
    weight_gradient: bool = True,
) -> Ledger:
    """``(rows, inner) @ (inner, columns)``: 2 * rows * inner * columns, and in training as much again
    for the gradient of each operand that needs one; of the input, by default, where the load says so."""
    flops = 2 * rows * inner * columns
    entries: dict[Key, Flops] = {(layer, component, "forward"): Flops(flops, flops)}
    if load.phase == "train":
        gradients = (load.input_gradient if input_gradient is None else input_gradient) + weight_gradient
        if gradients:
            entries[layer, component, "backward"] = Flops(flops * gradients, flops * gradients)
    return Ledger(entries)


def attention(
    load: Load,
    layer: int,
    *,
    heads: int,
    head_width: int,
    value_width: int | None = None,
    window: int | None = None,
    gradient: bool | None = None,
    block: int = PYTORCH_BLOCK,
) -> Ledger:
    """Scores and weighted values of causal self-attention: a matmul of ``head_width`` and one of
    ``value_width`` per head and query-key pair; in training twice that again (dQ, dK, dP, dV), where a
    ``gradient`` is needed at all; by default where the load says so. Kernels compute the
    scores once more in the backward pass: that is ``executed``, and no part of what the model needs.
    They take ``block`` queries at a time."""
    value_width = head_width if value_width is None else value_width
    pairs, each = load.pairs(window, block), 2 * heads * (head_width + value_width)
    again = 2 * heads * backward_width(head_width, value_width)
    if not is_fused(head_width, value_width):
        pairs, again = Flops(pairs.model, pairs.full), 2 * each
    forward = pairs * each
    entries: dict[Key, Flops] = {(layer, "attention.scores", "forward"): forward}
    if load.phase == "train" and (load.input_gradient if gradient is None else gradient):
        entries[layer, "attention.scores", "backward"] = Flops(
            forward.model * 2, forward.full * 2, pairs.executed * again
        )
    return Ledger(entries)
