"""Probe 3: decoding with a cache gives the logits of the full forward pass.

B sequences, T tokens, V vocabulary.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from modbench.measure.audit.finding import COARSE, ROUNDING, Outcome, Subject, largest, next_tokens
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.routing.build import RoutedDecoder

#: Tokens of each sequence of a batch that are decoded one by one, after a chunk of at most `CHUNK`.
DECODED, CHUNK = 16, 5
#: Tokens of the prompt of a sequence decoded alone, and the least number decoded after it.
PROMPT, LONG = 8, 200
#: In the model's own dtype, where rounding may flip a decision, this share of the tokens may differ.
SHARE = 0.5


@dataclass(frozen=True)
class Parity:
    """Comparison of cached passes with the full pass: the ``figure``; the largest share of tokens off
    by more than rounding, among prompts, chunks and decoded tokens; the largest difference; a layer
    that caches a wrong number of keys; and how many (decoded token, layer) pairs were selected out of
    how many."""

    figure: str
    share: float
    most: float
    keeps: str
    selected: int
    of: int

    def passed(self, share: float = 0.0) -> bool:
        return not self.keeps and self.share <= share


@torch.no_grad()
def decode_parity(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 3: cached passes give the logits of the full causal pass. Tested on a batch (padded prompts
    of different lengths, then a chunk, then one token at a time) and on one sequence of 200 tokens or
    the length of ``tokens_BT``.

    A layer that shows ``selected`` must cache as many keys as it selects tokens; others are judged by
    their logits alone. If all decoded tokens are selected, or none, initial weights are tested too:
    otherwise a decoding that always or never selects would pass. All this holds in float64, and for
    most tokens of one of two texts in the model's own dtype."""
    together = _together(subject.exact, tokens_BT[:4], ROUNDING)
    figure = together.figure
    if together.passed() and together.of and together.selected in (0, together.of):
        together = _together(subject.fresh()[0].double().eval(), tokens_BT[:4], ROUNDING)
        figure = f"{together.figure}, with initial weights"
    if not together.passed():
        return False, figure
    alone = _alone(subject.exact, subject, tokens_BT, ROUNDING)
    figure += f"; {'' if alone.passed() else 'alone, '}{alone.figure}"
    if not alone.passed() or subject.is_exact:
        return alone.passed(), figure
    for draw, text_BT in enumerate(subject.texts(tokens_BT)):
        own = [
            _together(subject.own, text_BT[:4], COARSE),
            _alone(subject.own, subject, text_BT, COARSE, draw),
        ]
        wrong = [parity for parity in own if not parity.passed(SHARE)]
        if not wrong:
            break
    if wrong:
        return False, f"{figure}; in {subject.dtype} only {wrong[0].figure}"
    return True, f"{figure}; in {subject.dtype} by {max(parity.most for parity in own):.1e}"


def _together(model: RoutedDecoder, tokens_BT: Tensor, rounding: float) -> Parity:
    """`_parity` of a batch whose sequences are at different positions."""
    sequences, sequence = tokens_BT.shape
    steps = min(DECODED, sequence - 1)
    more = min(CHUNK, sequence - 1 - steps)
    longest = sequence - steps - more
    prompts = [1 + (longest - 1) * (n + 1) // sequences for n in range(sequences)]
    chunks = [max(1, more - n) for n in range(sequences)] if more else []
    reads = [prompts, *([chunks] if chunks else []), *[[1] * sequences] * steps]
    return _parity(model, tokens_BT, reads, rounding)


def _alone(
    model: RoutedDecoder, subject: Subject, tokens_BT: Tensor, rounding: float, draw: int = 0
) -> Parity:
    """`_parity` of one sequence at least as long as those of ``tokens_BT``."""
    steps = max(LONG, tokens_BT.shape[1] - PROMPT - CHUNK)
    text_BT = subject.tokens(1, PROMPT + CHUNK + steps, draw)
    return _parity(model, text_BT, [[PROMPT], [CHUNK], *[[1]] * steps], rounding)


def _parity(model: RoutedDecoder, tokens_BT: Tensor, reads: list[list[int]], rounding: float) -> Parity:
    """Compare; ``reads`` holds the number of new tokens of each sequence, pass by pass."""
    sequences = len(tokens_BT)
    whole_BTV = model(tokens_BT, Context(selection="causal"))
    bound = rounding * max(1.0, whole_BTV.abs().max().item())
    cache = Cache(sequences)
    due: defaultdict[int, list[int]] = defaultdict(lambda: [0] * sequences)

    def read(lengths: list[int]) -> list[float]:
        """Process ``lengths`` new tokens of each sequence; return the differences of their logits."""
        before = list(cache.read)
        new_BT, lengths_B = next_tokens(tokens_BT, cache, lengths)
        context = Context(selection="causal", cache=cache, lengths_B=lengths_B)
        logits_BTV = model(new_BT, context)
        for (layer, name), shown in context.trace.tensors.items():
            if name == "selected":
                for row, length in enumerate(lengths):
                    due[layer][row] += int(shown[row, :length].sum())
        rows = zip(logits_BTV, whole_BTV, before, lengths, strict=True)
        return [
            off
            for new_TV, whole_TV, first, length in rows
            for off in largest(new_TV[:length], whole_TV[first : first + length]).tolist()
        ]

    offs: dict[str, list[float]] = {"prompts": [], "chunks": [], "decoded": []}
    selected = of = 0
    for number, lengths in enumerate(reads):
        single = number > 0 and max(lengths) == 1
        what = "decoded" if single else "chunks" if number else "prompts"
        already = sum(map(sum, due.values()))
        offs[what] += read(lengths)
        if single:
            selected += sum(map(sum, due.values())) - already
            of += sequences * len(due)

    most = {what: max(off, default=0.0) for what, off in offs.items()}
    figure = f"{len(offs['decoded'])} decoded tokens differ by up to {most['decoded']:.1e}"
    if of:
        figure += f", {selected / of:.0%} selected"
    for what in ("chunks", "prompts"):
        if most[what] > bound:
            figure = f"{what} differ by {most[what]:.1e}, {figure}"
    keeps = ""
    for layer, expected in sorted(due.items()):
        kept = cache.lengths(layer)
        if any(kept) and kept != expected:  # a layer without attention caches no keys
            keeps = f"layer {layer} caches {kept} keys of {expected} selected tokens"
            figure = f"{keeps}; {figure}"
            break
    share = max(sum(off > bound for off in every) / max(1, len(every)) for every in offs.values())
    return Parity(figure, share, max(most.values()), keeps, selected, of)
