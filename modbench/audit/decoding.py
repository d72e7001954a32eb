"""Probe 3: decoding with a cache gives the logits of the full forward pass.

B sequences, T tokens, V vocabulary.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modbench.audit.finding import COARSE, ROUNDING, ModelSubject, Outcome, largest, next_tokens
from modbench.audit.leaks import mixing
from modbench.errors import several
from modbench.model.context import Context, Logits
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel

#: Tokens of each sequence of a batch that are decoded one by one; fewer at further shapes, since each
#: takes a pass.
DECODED, FEWER = 16, 4
#: Most tokens of the chunk that is read before them.
CHUNK = 5
#: Tokens of the prompt of a sequence decoded alone, and the least number read after it.
PROMPT, LONG = 8, 200
#: Number of these that are decoded one by one at first.
SINGLE = 8
#: Tokens of a chunk, and single tokens after it: these two alternate from then on, since chunks are
#: cheaper.
SKIP, PAIR = 24, 2
#: Tokens that are read, dropped by rewinding the cache, and read again.
DRAFT = 3
#: Passes of another batch that is read in turns with the first; each takes time.
TURNS = 8
#: In the model's own dtype, where rounding may flip a decision, this fraction of the tokens may differ.
TOLERATED = 0.5


@dataclass(frozen=True)
class Pass:
    """New tokens of each sequence, and whose logits are asked for. If it is not ``kept``, the cache is
    rewound afterwards, and the next pass reads the same tokens."""

    lengths: list[int]
    logits: Logits = "all"
    kept: bool = True


class Reading:
    """A text (B, T) that ``passes`` read into a cache of its own, and how their logits differ from those
    of the full pass."""

    def __init__(
        self,
        model: LanguageModel,
        tokens_BT: Tensor,
        passes: Sequence[Pass],
        rounding: float = ROUNDING,
    ) -> None:
        self.model, self.tokens_BT, self.passes = model, tokens_BT, passes
        self.cache = Cache(len(tokens_BT))
        self.whole_BTV = model(tokens_BT, Context(selection="causal"))
        self.bound = rounding * max(1.0, self.whole_BTV.abs().max().item())
        #: Differences of the logits of prompts, chunks and decoded tokens.
        self.offs: defaultdict[str, list[float]] = defaultdict(list)
        #: Keys that each layer should cache, by sequence.
        self.due: defaultdict[int, list[int]] = defaultdict(lambda: [0] * len(tokens_BT))
        #: Pairs of a decoded token and a layer that shows ``selected``, and those that were selected.
        self.pairs = self.selected = 0

    def run(self) -> "Reading":
        deque(self.steps(), maxlen=0)
        return self

    def steps(self) -> Iterator[None]:
        """Run the passes, one at a time."""
        for read in self.passes:
            before, mark = list(self.cache.read), self.cache.mark()
            what = "decoded" if read.kept and max(read.lengths) == 1 else "chunks"
            what = what if any(before) else "prompts"
            new_BT, lengths_B = next_tokens(self.tokens_BT, self.cache, read.lengths)
            context = Context(
                selection="causal", cache=self.cache, lengths_B=lengths_B, logits=read.logits
            )
            logits_BTV = self.model(new_BT, context)
            for row, (first, length) in enumerate(zip(before, read.lengths, strict=True)):
                asked = 1 if read.logits == "last" else length
                full_TV = self.whole_BTV[row, first + length - asked : first + length]
                self.offs[what] += largest(logits_BTV[row, :asked], full_TV).tolist()
            if not read.kept:
                self.cache.rewind(mark)
            for (layer, name), shown_BT in context.trace.tensors.items() if read.kept else ():
                if name == "selected":
                    for row, length in enumerate(read.lengths):
                        number = int(shown_BT[row, :length].sum())
                        self.due[layer][row] += number
                        self.selected += number * (what == "decoded")
                        self.pairs += what == "decoded"
            yield

    @property
    def wrong_keys(self) -> str:
        """Describe a layer that caches another number of keys than it selects tokens; empty if there is
        none. A layer without attention caches none."""
        for layer, expected in sorted(self.due.items()):
            kept = self.cache.lengths(layer)
            if any(kept) and kept != expected:
                return f"layer {layer} caches {kept} keys of {expected} selected tokens; "
        return ""

    def passed(self, tolerated: float = 0.0) -> bool:
        """Return True if at most the fraction ``tolerated`` of prompts, of chunks and of decoded tokens
        differs by more than rounding."""
        each = self.offs.values()
        few = (sum(off > self.bound for off in offs) <= tolerated * len(offs) for offs in each)
        return not self.wrong_keys and all(few)

    def figure(self) -> str:
        decoded = self.offs["decoded"]
        most = max(decoded, default=0.0)
        figure = f"{several(len(decoded), 'decoded token')} differ by up to {most:.1e}"
        if self.pairs:
            figure += f", {self.selected / self.pairs:.0%} selected"
        for what in ("chunks", "prompts"):
            if (most := max(self.offs[what], default=0.0)) > self.bound:
                figure = f"{what} differ by {most:.1e}, {figure}"
        return self.wrong_keys + figure


@torch.no_grad()
def decode_parity(subject: ModelSubject, tokens_BT: Tensor) -> Outcome:
    """Probe 3: cached passes give the logits of the full causal pass. Tested on a batch (padded prompts,
    a chunk, then one token at a time), at the first shape in turns with another one; and, at the longest
    shape, on one sequence of `LONG` tokens or its length. The prompts are read with all logits, dropped
    by rewinding the cache, and read again with ``logits="last"`` as `modbench.model.generate` does;
    later tokens are dropped and read again, too.

    A layer that shows ``selected`` must cache as many keys as it selects tokens; others are judged by
    their logits alone. If all decoded tokens are selected, or none, initial weights are tested too:
    otherwise a decoding that always or never selects would pass. All this holds in float64, and at the
    longest shape for most tokens in the model's own dtype."""
    readings = [_batch(subject, tokens_BT)]
    if subject.is_longest(tokens_BT):
        readings.append(_alone(subject, tokens_BT.shape[1]))
    figure = readings[0].figure()
    if readings[0].passed() and readings[0].pairs and readings[0].selected in (0, readings[0].pairs):
        initial = Reading(subject.initial, tokens_BT[:4], _passes(tokens_BT[:4])).run()
        figure = f"{initial.figure()}, with initial weights"
        if not initial.passed():
            return False, figure
    figure += "".join(f"; alone, {reading.figure()}" for reading in readings[1:])
    passed = all(reading.passed() for reading in readings)
    figure += "" if passed else mixing(subject, tokens_BT)
    if subject.dtype == torch.float64 or not passed or not subject.is_longest(tokens_BT):
        return passed, figure
    reading = Reading(subject.own, tokens_BT[:4], _passes(tokens_BT[:4]), COARSE).run()
    if reading.passed(TOLERATED):
        most = max(off for offs in reading.offs.values() for off in offs)
        return True, f"{figure}; in {subject.dtype} by {most:.1e}"
    return False, f"{figure}; in {subject.dtype} only {reading.figure()}"


def _batch(subject: ModelSubject, tokens_BT: Tensor) -> Reading:
    """Read a batch in float64; at the first shape, in turns with another one."""
    text_BT = tokens_BT[:4]
    first = subject.is_first(tokens_BT)
    passes = _passes(text_BT, rewinds=True, decoded=DECODED if first else FEWER)
    reading = Reading(subject.exact, text_BT, passes)
    turns: Iterator[None] = iter(())
    if first:
        other_BT = subject.tokens(len(text_BT), text_BT.shape[1], draw=2)
        turns = Reading(subject.exact, other_BT, _passes(other_BT)[:TURNS]).steps()
    for _ in reading.steps():
        next(turns, None)
    return reading


def _alone(subject: ModelSubject, sequence: int) -> Reading:
    """Read one sequence in float64: single tokens, in between chunks, which are cheaper."""
    steps = max(LONG, sequence - PROMPT - CHUNK)
    bursts = [1] * SINGLE
    while (left := steps - sum(bursts)) > 0:
        bursts += [max(1, min(SKIP, left - PAIR)), *[1] * min(PAIR, left - 1)]
    text_1T = subject.tokens(1, PROMPT + CHUNK + steps)
    passes = [Pass([PROMPT], "last"), Pass([CHUNK]), *(Pass([length]) for length in bursts)]
    return Reading(subject.exact, text_1T, passes).run()


def _passes(tokens_BT: Tensor, *, rewinds: bool = False, decoded: int = DECODED) -> list[Pass]:
    """Passes of a batch whose sequences are at different positions; the last tokens are ``decoded`` one
    by one. ``rewinds``: read the prompts and some later tokens twice."""
    sequences, sequence = tokens_BT.shape
    steps = min(decoded, sequence - 1)
    more = min(CHUNK, sequence - 1 - steps)
    longest = sequence - steps - more
    prompts = [1 + (longest - 1) * (n + 1) // sequences for n in range(sequences)]
    chunk = [Pass([max(1, more - n) for n in range(sequences)])] if more else []
    singles = [Pass([1] * sequences)] * steps
    if not rewinds:
        return [Pass(prompts), *chunk, *singles]
    if steps:
        singles.insert(steps // 2, Pass([min(DRAFT, steps - steps // 2)] * sequences, kept=False))
    return [Pass(prompts, kept=False), Pass(prompts, "last"), *chunk, *singles]
