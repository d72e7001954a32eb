"""Probe 3: token by token through a cache is the full forward pass.

B sequences, T tokens, V vocabulary.
"""

from collections import defaultdict

import torch
from torch import Tensor

from modbench.measure.audit.finding import ROUNDING, Outcome, Subject, largest
from modbench.model.cache import Cache
from modbench.model.context import Context
from modbench.model.decoder import Decoder

#: Tokens of each sequence that are decoded one by one, after `CHUNK` read at once, some fewer.
DECODED, CHUNK = 16, 5
#: What one sequence alone reads: a prompt, some more at once, and this many or more one by one.
PROMPT, LONG = 8, 200


@torch.no_grad()
def decode_parity(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 3: prompts of different lengths, padded, some more of each at once, then one token of each
    sequence at a time, give the logits of the full causal pass that has no cache; so do 200 tokens of
    one sequence alone, or as many as the sequences have; and each layer keeps as many keys as tokens
    entered it. Where the model lets all decoded tokens into its routed layers, or none, first weights
    are asked, too: a decoding that always or never selects would not be told from it."""
    passed, figure, entered, of = _together(subject.exact, tokens_BT[:4])
    if passed and of and entered in (0, of):
        passed, figure, entered, of = _together(subject.fresh()[0].double().eval(), tokens_BT[:4])
        figure += ", of first weights"
    if not passed:
        return False, figure
    steps = max(LONG, tokens_BT.shape[1] - PROMPT - CHUNK)
    text_BT = subject.tokens(1, PROMPT + CHUNK + steps)
    passed, alone, _, _ = _parity(subject.exact, text_BT, [[PROMPT], [CHUNK], *[[1]] * steps])
    return passed, f"{figure}; {'' if passed else 'of one sequence '}{alone}"


def _together(model: Decoder, tokens_BT: Tensor) -> tuple[bool, str, int, int]:
    """`_parity` of a batch, in which all sequences stand at different places."""
    sequences, sequence = tokens_BT.shape
    steps = min(DECODED, sequence - 1)
    more = min(CHUNK, sequence - 1 - steps)
    longest = sequence - steps - more
    prompts = [1 + (longest - 1) * (n + 1) // sequences for n in range(sequences)]
    chunks = [max(1, more - n) for n in range(sequences)] if more else []
    reads = [prompts, *([chunks] if chunks else []), *[[1] * sequences] * steps]
    return _parity(model, tokens_BT, reads)


def _parity(model: Decoder, tokens_BT: Tensor, reads: list[list[int]]) -> tuple[bool, str, int, int]:
    """Whether it holds for ``reads``, the new tokens of each sequence, pass by pass; the figure, and how
    many tokens read one by one entered a layer that selects, out of how many; a token is counted in
    each such layer."""
    sequences = len(tokens_BT)
    whole_BTV = model(tokens_BT, Context(selection="causal"))
    bound = ROUNDING * max(1.0, whole_BTV.abs().max().item())
    cache = Cache(sequences)
    due: defaultdict[int, list[int]] = defaultdict(lambda: [0] * sequences)

    def read(lengths: list[int]) -> float:
        """Read ``lengths`` new tokens of each sequence: by how much their logits are off."""
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
        return max(
            largest(new_TV[:length], whole_TV[first : first + length]).max().item()
            for new_TV, whole_TV, first, length in rows
        )

    off = {"prompts": 0.0, "chunks": 0.0, "one by one": 0.0}
    entered = of = 0
    for number, lengths in enumerate(reads):
        single = number > 0 and max(lengths) == 1
        what = "one by one" if single else "chunks" if number else "prompts"
        already = sum(map(sum, due.values()))
        off[what] = max(off[what], read(lengths))
        if single:
            entered += sum(map(sum, due.values())) - already
            of += sequences * len(due)

    steps = sum(sum(lengths) for lengths in reads[1:] if max(lengths) == 1)
    figure = f"{steps} tokens one by one differ by {off['one by one']:.1e} at most"
    if of:
        figure += f", {entered / of:.0%} entered"
    for what in ("chunks", "prompts"):
        if off[what] > bound:
            figure = f"{what} differ by {off[what]:.1e}, {figure}"
    for layer in range(len(model.layers)):
        kept, expected = cache.lengths(layer), due.get(layer, cache.read)
        if any(kept) and kept != expected:  # a layer without attention keeps none
            wrong = f"layer {layer} keeps {kept} keys of {expected} tokens that entered; {figure}"
            return False, wrong, entered, of
    return max(off.values()) <= bound, figure, entered, of
