"""Probe 3: token by token through a cache is the full forward pass.

B sequences, T tokens, V vocabulary.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from modbench.measure.audit.finding import COARSE, ROUNDING, Outcome, Subject, largest
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.routing.build import RoutedDecoder

#: Tokens of each sequence that are decoded one by one, after `CHUNK` read at once, some fewer.
DECODED, CHUNK = 16, 5
#: What one sequence alone reads: a prompt, some more at once, and this many or more one by one.
PROMPT, LONG = 8, 200


#: In the model's own dtype, where rounding may tip a decision, up to this share of the tokens of a kind.
SHARE = 0.5


@dataclass(frozen=True)
class Parity:
    """What reading with a cache showed: the ``figure``; the largest share of ``prompts``, ``chunks`` or
    tokens ``one by one`` that are off by more than rounding, and by how much at most; what a layer keeps
    that it should not; and how many tokens read one by one entered a layer that selects, out of how
    many, a token being counted in each such layer."""

    figure: str
    share: float
    most: float
    keeps: str
    entered: int
    of: int

    def passed(self, share: float = 0.0) -> bool:
        return not self.keeps and self.share <= share


@torch.no_grad()
def decode_parity(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 3: prompts of different lengths, padded, some more of each at once, then one token of each
    sequence at a time, give the logits of the full causal pass that has no cache; so do 200 tokens of
    one sequence alone, or as many as the sequences have; and each layer that shows who is ``selected``
    keeps as many keys as tokens entered it. One that shows nobody may keep fewer, or more: attention
    alone may be routed, a window may forget, and the logits tell whether that is right. Where the model
    lets all decoded tokens into its routed layers, or none, first weights are asked, too: a decoding
    that always or never selects would not be told from it. All of it in float64; in the model's own
    dtype of most tokens, or of those of a second text."""
    together = _together(subject.exact, tokens_BT[:4], ROUNDING)
    figure = together.figure
    if together.passed() and together.of and together.entered in (0, together.of):
        together = _together(subject.fresh()[0].double().eval(), tokens_BT[:4], ROUNDING)
        figure = f"{together.figure}, of first weights"
    if not together.passed():
        return False, figure
    alone = _alone(subject.exact, subject, tokens_BT, ROUNDING)
    figure += f"; {'' if alone.passed() else 'of one sequence '}{alone.figure}"
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
    """`_parity` of a batch, in which all sequences stand at different places."""
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
    """`_parity` of one sequence that is as long as those of ``tokens_BT``, or longer."""
    steps = max(LONG, tokens_BT.shape[1] - PROMPT - CHUNK)
    text_BT = subject.tokens(1, PROMPT + CHUNK + steps, draw)
    return _parity(model, text_BT, [[PROMPT], [CHUNK], *[[1]] * steps], rounding)


def _parity(model: RoutedDecoder, tokens_BT: Tensor, reads: list[list[int]], rounding: float) -> Parity:
    """``reads``: the new tokens of each sequence, pass by pass."""
    sequences = len(tokens_BT)
    whole_BTV = model(tokens_BT, Context(selection="causal"))
    bound = rounding * max(1.0, whole_BTV.abs().max().item())
    cache = Cache(sequences)
    due: defaultdict[int, list[int]] = defaultdict(lambda: [0] * sequences)

    def read(lengths: list[int]) -> list[float]:
        """Read ``lengths`` new tokens of each sequence: by how much the logits of each are off."""
        before = list(cache.read)
        places_T = torch.arange(max(lengths), device=tokens_BT.device)
        places_BT = torch.tensor(before, device=tokens_BT.device)[:, None] + places_T
        new_BT = tokens_BT.gather(1, places_BT.clamp(max=tokens_BT.shape[1] - 1))
        ragged = min(lengths) < new_BT.shape[1]
        lengths_B = torch.tensor(lengths, device=new_BT.device) if ragged else None
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

    offs: dict[str, list[float]] = {"prompts": [], "chunks": [], "one by one": []}
    entered = of = 0
    for number, lengths in enumerate(reads):
        single = number > 0 and max(lengths) == 1
        what = "one by one" if single else "chunks" if number else "prompts"
        already = sum(map(sum, due.values()))
        offs[what] += read(lengths)
        if single:
            entered += sum(map(sum, due.values())) - already
            of += sequences * len(due)

    most = {what: max(off, default=0.0) for what, off in offs.items()}
    figure = f"{len(offs['one by one'])} tokens one by one differ by {most['one by one']:.1e} at most"
    if of:
        figure += f", {entered / of:.0%} entered"
    for what in ("chunks", "prompts"):
        if most[what] > bound:
            figure = f"{what} differ by {most[what]:.1e}, {figure}"
    keeps = ""
    for layer, expected in sorted(due.items()):
        kept = cache.lengths(layer)
        if any(kept) and kept != expected:  # a layer without attention keeps none
            keeps = f"layer {layer} keeps {kept} keys of {expected} tokens that entered"
            figure = f"{keeps}; {figure}"
            break
    share = max(sum(off > bound for off in every) / max(1, len(every)) for every in offs.values())
    return Parity(figure, share, max(most.values()), keeps, entered, of)
