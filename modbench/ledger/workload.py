"""Workload: the tokens that arrive at a layer, and which of their costs are counted."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import index
from typing import Any, Literal

from modbench.ledger.cpu_attention import executed_pairs
from modbench.ledger.flops import Flops

Phase = Literal["forward", "train", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("forward", "train", "prefill", "decode")

#: Realised routing: (layer, what was routed) -> counts, one per sequence or one in all.
Counts = Mapping[tuple[int, str], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The input of a layer: ``lengths[i]`` new tokens of sequence i, and which costs are counted.

    Phases: ``forward`` scores every token; ``train`` is a forward and a backward pass; ``prefill`` reads
    a prompt into a cache and computes the logits of each sequence's last token; ``decode`` processes the
    new tokens one at a time, each with its logits. ``past[i]`` tokens of sequence i are cached (default:
    none).

    ``counts`` is the routing that a forward pass realised (`Trace.counts`); without an entry, a layer
    uses its nominal counts. With ``padding``, the slots that pad each sequence to the longest are
    counted where they are computed (dispatched). ``checkpoint``: each layer's forward pass runs again in
    the backward pass. ``input_gradient``: the backward pass continues below this part of the model.
    Raise a `ValueError` for an unknown phase, no sequence, a length below 0, a past in training, or
    dispatched decoding of more than one token."""

    lengths: tuple[int, ...]
    phase: Phase = "forward"
    past: tuple[int, ...] = ()
    padding: bool = False
    checkpoint: bool = False
    counts: Counts = field(default_factory=dict)
    input_gradient: bool = True

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase '{self.phase}' is not known; known: {', '.join(PHASES)}")
        for name in ("lengths", "past"):  # Python's integers never overflow, unlike numpy's
            object.__setattr__(self, name, tuple(map(index, getattr(self, name))))
        if not self.lengths or min(self.lengths) < 0:
            raise ValueError(f"lengths {self.lengths}: give one or more sequences of 0 or more tokens")
        if not self.past:
            object.__setattr__(self, "past", (0,) * len(self.lengths))
        if len(self.past) != len(self.lengths) or min(self.past) < 0:
            raise ValueError(f"past {self.past}: each of {len(self.lengths)} sequences needs 0 or more")
        if any(self.past) and self.phase == "train":
            raise ValueError(f"past {self.past}: nothing is cached in phase 'train'; leave it out")
        if self.padding and self.phase == "decode" and max(self.lengths) > 1:
            raise ValueError(f"lengths {self.lengths}: decoding with padding takes one token at a time")

    @classmethod
    def uniform(
        cls, sequences: int, length: int, phase: Phase = "forward", past: int = 0, **others: Any
    ) -> "Workload":
        """``sequences`` sequences of ``length`` new tokens each, after ``past`` cached ones."""
        lengths, before = (length,) * sequences, (past,) * sequences
        return cls(lengths=lengths, phase=phase, past=before, **others)

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """New tokens, without padding."""
        return sum(self.lengths)

    @property
    def slots(self) -> int:
        """Rows of a dense matmul."""
        return self.sequences * max(self.lengths) if self.padding else self.tokens

    @property
    def scored(self) -> int:
        """Rows whose logits are computed."""
        return self.sequences if self.phase == "prefill" else self.slots

    def pairs(self, window: int | None = None) -> Flops:
        """Query-key pairs of causal self-attention: the exact triangles, the full squares, and those
        that kernels compute. A token sees the last ``window`` of the cached tokens and the new ones up
        to itself."""
        return _pairs(self.lengths, self.past, self.padding, self.phase == "decode", window)

    def routed(
        self, tokens_per_sequence: int | Sequence[int], past_per_sequence: int | Sequence[int] = 0
    ) -> "Workload":
        """Return the workload of a part that processes ``tokens_per_sequence`` new tokens after
        ``past_per_sequence`` earlier ones. Sequences without new tokens are dropped, unless all are."""
        lengths = _each(tokens_per_sequence, self.sequences)
        past = _each(past_per_sequence, self.sequences)
        if any(lengths):
            kept = [i for i, new in enumerate(lengths) if new]
            lengths, past = tuple(lengths[i] for i in kept), tuple(past[i] for i in kept)
        return replace(self, lengths=lengths, past=past)

    def after(self, trained: bool) -> "Workload":
        """Return the workload of the part that follows one with, or without, trained parameters."""
        return self if self.input_gradient or not trained else replace(self, input_gradient=True)


@lru_cache(maxsize=1024)  # all layers of a model have the same
def _pairs(
    lengths: tuple[int, ...], past: tuple[int, ...], padding: bool, decoding: bool, window: int | None
) -> Flops:
    longest = max(lengths)
    widest = max(n + p for n, p in zip(lengths, past, strict=True))
    total = Flops(0, 0)
    for (new, before), sequences in Counter(zip(lengths, past, strict=True)).items():
        rows, keys = (longest, widest) if padding else (new, before + new)
        # Causal attention without a mask. A window as wide as the keys still comes with one.
        plain = not any(past) and (window is None or keys < window)
        needed = _triangle(rows if plain else new, before, window)
        if not plain:  # a padded row sees what the last real one does
            needed += (rows - new) * min(before + new, window or keys)
        if decoding:
            # Token by token there is no later key to skip.
            each = Flops(needed, rows * keys if padding else _triangle(new, before))
        else:
            executed = executed_pairs(rows, keys) if plain else rows * keys
            each = Flops(needed, rows * keys, executed)
        total += each * sequences
    return total


def _each(value: int | Sequence[int], sequences: int) -> tuple[int, ...]:
    return (value,) * sequences if isinstance(value, int) else tuple(value)


def _triangle(new: int, past: int, window: int | None = None) -> int:
    """Count the keys that ``new`` tokens see after ``past`` others, themselves included, at most
    ``window`` each."""
    if window is None or past + new <= window:
        return new * past + new * (new + 1) // 2
    growing = max(0, window - past)
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


def incremental_counts(
    share: Callable[[int], int], lengths: Sequence[int], past: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the routed new and earlier tokens per sequence, if ``share(n)`` of the first n tokens are
    routed. New tokens count as the difference of two prefixes, so that decoding token by token adds up
    to the whole sequence."""
    before = tuple(share(p) if p else 0 for p in past)
    ends = (n + p for n, p in zip(lengths, past, strict=True))
    return tuple((share(end) if end else 0) - b for end, b in zip(ends, before, strict=True)), before
