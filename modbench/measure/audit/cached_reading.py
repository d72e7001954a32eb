"""Reads a text through a KV cache, pass by pass, and compares its logits with those of the full pass.

B sequences, T tokens, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modbench.measure.audit.finding import largest, next_tokens
from modbench.model.context import Context, Logits
from modbench.model.kv_cache import Cache
from modbench.routing.build import RoutedDecoder


@dataclass(frozen=True)
class Pass:
    """New tokens of each sequence, and whose logits are asked for. If it is not ``kept``, the cache is
    rewound afterwards, and the next pass reads the same tokens."""

    lengths: list[int]
    logits: Logits = "all"
    kept: bool = True


@dataclass(frozen=True)
class Parity:
    """Comparison of cached passes with the full pass: the ``figure``; the largest fraction of tokens off
    by more than rounding, among prompts, chunks and decoded tokens; the largest difference; a layer
    that caches a wrong number of keys; and how many (decoded token, layer) pairs were selected out of
    how many."""

    figure: str
    fraction: float
    most: float
    keeps: str
    selected: int
    of: int

    def passed(self, tolerated: float = 0.0) -> bool:
        return not self.keeps and self.fraction <= tolerated


@dataclass
class Reading:
    """A text (B, T) and the passes that read it into a cache of its own."""

    model: RoutedDecoder
    tokens_BT: Tensor
    passes: Sequence[Pass]
    rounding: float
    #: Differences of the logits of prompts, chunks and decoded tokens.
    offs: dict[str, list[float]] = field(
        default_factory=lambda: {"prompts": [], "chunks": [], "decoded": []}
    )
    selected: int = 0
    of: int = 0

    def __post_init__(self) -> None:
        sequences = len(self.tokens_BT)
        self.cache = Cache(sequences)
        #: Keys that each layer should cache, by sequence.
        self.due: defaultdict[int, list[int]] = defaultdict(lambda: [0] * sequences)
        self.whole_BTV = self.model(self.tokens_BT, Context(selection="causal"))

    def steps(self) -> Iterator[None]:
        """Run the passes, one at a time."""
        for one in self.passes:
            if not any(self.cache.read):
                what = "prompts"
            else:
                what = "decoded" if one.kept and max(one.lengths) == 1 else "chunks"
            mark = self.cache.mark()
            counts = self._run(one, what)
            if not one.kept:
                self.cache.rewind(mark)
            elif what == "decoded":
                self.selected += sum(map(sum, counts.values()))
                self.of += len(one.lengths) * len(counts)
            yield

    def _run(self, one: Pass, what: str) -> dict[int, list[int]]:
        """Run a pass; return the number of selected tokens by layer and sequence."""
        before = list(self.cache.read)
        new_BT, lengths_B = next_tokens(self.tokens_BT, self.cache, one.lengths)
        context = Context(selection="causal", cache=self.cache, lengths_B=lengths_B, logits=one.logits)
        logits_BTV = self.model(new_BT, context)
        for row, (first, length) in enumerate(zip(before, one.lengths, strict=True)):
            last = one.logits == "last"
            new_TV = logits_BTV[row, : 1 if last else length]
            full_TV = self.whole_BTV[row, first + (length - 1 if last else 0) : first + length]
            self.offs[what] += largest(new_TV, full_TV).tolist()
        counts = {
            layer: [int(shown[row, :length].sum()) for row, length in enumerate(one.lengths)]
            for (layer, name), shown in context.trace.tensors.items()
            if name == "selected"
        }
        for layer, each in counts.items() if one.kept else ():
            self.due[layer] = [n + more for n, more in zip(self.due[layer], each, strict=True)]
        return counts

    def parity(self) -> Parity:
        """Compare what was read."""
        bound = self.rounding * max(1.0, self.whole_BTV.abs().max().item())
        most = {what: max(off, default=0.0) for what, off in self.offs.items()}
        decoded = len(self.offs["decoded"])
        figure = f"{decoded} decoded tokens differ by up to {most['decoded']:.1e}"
        if self.of:
            figure += f", {self.selected / self.of:.0%} selected"
        for what in ("chunks", "prompts"):
            if most[what] > bound:
                figure = f"{what} differ by {most[what]:.1e}, {figure}"
        keeps = ""
        for layer, expected in sorted(self.due.items()):
            kept = self.cache.lengths(layer)
            if any(kept) and kept != expected:  # a layer without attention caches no keys
                keeps = f"layer {layer} caches {kept} keys of {expected} selected tokens"
                figure = f"{keeps}; {figure}"
                break
        wrong = (sum(off > bound for off in every) / max(1, len(every)) for every in self.offs.values())
        return Parity(figure, max(wrong), max(most.values()), keeps, self.selected, self.of)


@torch.no_grad()
def in_turns(readings: Sequence[Reading]) -> list[Parity]:
    """Run ``readings``, a pass of each in turn, and compare each."""
    running = [reading.steps() for reading in readings]
    while running:
        running = [steps for steps in running if next(steps, steps) is None]
    return [reading.parity() for reading in readings]
