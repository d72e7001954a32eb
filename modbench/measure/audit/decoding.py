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

#: Tokens of each sequence that are decoded one by one.
DECODED = 16


@torch.no_grad()
def decode_parity(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 3: prompts of different lengths, padded, then one token of each sequence at a time, give
    the logits of the full causal pass; and each layer keeps as many keys as tokens entered it. Where the
    model lets all decoded tokens into its routed layers, or none, first weights are asked, too: a
    decoding that always or never selects would not be told from it."""
    passed, figure, entered, of = _parity(subject.exact, tokens_BT[:4])
    if passed and of and entered in (0, of):
        passed, figure, entered, of = _parity(subject.fresh()[0].double().eval(), tokens_BT[:4])
        figure += ", of first weights"
    return passed, figure


def _parity(model: Decoder, tokens_BT: Tensor) -> tuple[bool, str, int, int]:
    """Whether it holds, the figure, and how many decoded tokens entered a layer that selects, out of
    how many; a token is counted in each such layer."""
    sequences, sequence = tokens_BT.shape
    steps = min(DECODED, sequence - 1)
    longest = sequence - steps
    prompts = [1 + (longest - 1) * (n + 1) // sequences for n in range(sequences)]
    whole_BTV = model(tokens_BT, Context(selection="causal"))
    bound = ROUNDING * max(1.0, whole_BTV.abs().max().item())
    cache = Cache(sequences)
    due: defaultdict[int, list[int]] = defaultdict(lambda: [0] * sequences)

    def read(new_BT: Tensor, lengths: list[int]) -> float:
        """Read ``lengths`` new tokens of each sequence: by how much their logits are off."""
        before = list(cache.read)
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

    prompt = read(tokens_BT[:, :longest], prompts)
    entered = -sum(map(sum, due.values()))
    one_by_one = 0.0
    for _ in range(steps):
        places_B1 = torch.tensor(cache.read, device=tokens_BT.device)[:, None]
        one_by_one = max(one_by_one, read(tokens_BT.gather(1, places_B1), [1] * sequences))
    entered += sum(map(sum, due.values()))
    of = sequences * steps * len(due)

    figure = f"{sequences * steps} tokens one by one differ by {one_by_one:.1e} at most"
    if of:
        figure += f", {entered / of:.0%} entered"
    if prompt > bound:
        figure = f"prompts differ by {prompt:.1e}, {figure}"
    for layer in range(len(model.layers)):
        kept, expected = cache.lengths(layer), due.get(layer, cache.read)
        if any(kept) and kept != expected:  # a layer without attention keeps none
            wrong = f"layer {layer} keeps {kept} keys of {expected} tokens that entered; {figure}"
            return False, wrong, entered, of
    return max(prompt, one_by_one) <= bound, figure, entered, of
