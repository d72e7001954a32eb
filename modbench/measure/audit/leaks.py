"""Probes 1 and 2: what may not be known. No later token, no stranger in the batch.

B sequences, T tokens, V vocabulary.
"""

import torch
from torch import Tensor

from modbench.measure.audit.finding import ROUNDING, Outcome, Subject, largest
from modbench.model.context import Context, Trace
from modbench.model.decoder import Decoder

#: The rounding of float32, where a changed batch may also tip a token across a threshold by chance: so
#: much, in so many of the earlier positions.
ROUNDING_32, SHARE_32 = 1e-3, 0.02
#: Up to how many tokens a sequence is asked at every place.
EVERY = 64
#: Of longer ones, so many places are drawn.
DRAWN = 32


@torch.no_grad()
def causal(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 1: tokens after t change, logits up to t do not, under the causal rule; in float64, and with
    a coarser measure in the model's own dtype. Every t is asked, of sequences of up to `EVERY` tokens;
    of longer ones the ends, the middle, both sides of powers of two, where windows and blocks end, and
    some that are drawn; all others are probe 3's, which decodes such a sequence token by token.
    Each t is a pass of its own with the same strangers, so that what a batch does stays probe 2's. A
    trace in detail, as held-out text is scored with, changes no logit."""
    tokens_BT = tokens_BT[:4]  # the length matters here; the batch is probe 2's
    plain_BTV, told_BTV = (
        subject.exact(tokens_BT, Context(selection="causal", trace=Trace(detailed=detailed)))
        for detailed in (False, True)
    )
    off = largest(told_BTV, plain_BTV).max().item()
    if off > ROUNDING * max(1.0, plain_BTV.abs().max().item()):
        return False, f"logits differ by {off:.1e} where the trace is detailed"
    most, moved, _ = _moved(subject.exact, tokens_BT, ROUNDING, subject.seed)
    own = subject.twin().eval()
    _, moved_32, looked_at = _moved(own, tokens_BT, ROUNDING_32, subject.seed)
    if moved == 0 and moved_32 > SHARE_32 * looked_at:
        return False, f"{moved_32} earlier positions moved in {next(own.parameters()).dtype} only"
    return moved == 0, f"{moved} earlier positions moved, by {most:.1e} at most"


def _moved(model: Decoder, tokens_BT: Tensor, rounding: float, seed: int) -> tuple[float, int, int]:
    """The largest move of an earlier position's logits, how many moved, and how many were looked at."""
    generator = torch.Generator().manual_seed(seed)
    sequence = tokens_BT.shape[1]
    before_BTV = model(tokens_BT, Context(selection="causal"))
    bound = rounding * max(1.0, before_BTV.abs().max().item())
    most, moved, looked_at = 0.0, 0, 0
    for place in _places(sequence, generator):
        shape = (tokens_BT.shape[0], sequence - place - 1)
        other_BT = torch.randint(model.config.vocabulary, shape, generator=generator)
        changed_BT = torch.cat((tokens_BT[:, : place + 1], other_BT.to(tokens_BT.device)), dim=1)
        after_BTV = model(changed_BT, Context(selection="causal"))
        difference_BT = largest(after_BTV[:, : place + 1], before_BTV[:, : place + 1])
        most = max(most, difference_BT.max().item())
        moved += int((difference_BT > bound).sum())
        looked_at += difference_BT.numel()
    return most, moved, looked_at


def _places(sequence: int, generator: torch.Generator) -> list[int]:
    """The last tokens that stay as they are."""
    if sequence <= EVERY:
        return list(range(sequence - 1))
    places = {0, 1, sequence // 4, sequence // 2, sequence - 8, sequence - 2}
    for power in range(4, sequence.bit_length()):
        places |= {2**power - 2, 2**power - 1}
    places |= set(torch.randperm(sequence - 1, generator=generator)[:DRAWN].tolist())
    return sorted(place for place in places if place < sequence - 1)


@torch.no_grad()
def batch_invariant(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 2: a sequence alone scores as it does in a batch of strangers, padded and not, down to one
    token. Under the training rule all logits are numbers."""
    model = subject.exact
    sequences, sequence = tokens_BT.shape
    padded = [max(1, sequence * (n + 1) // sequences) for n in range(sequences)]
    short = [min(n + 1, sequence) for n in range(sequences)]
    most, bound = 0.0, ROUNDING
    for lengths in (padded, short, [sequence] * sequences):
        ragged = min(lengths) < sequence
        lengths_B = torch.tensor(lengths, device=tokens_BT.device) if ragged else None
        for row, length in enumerate(lengths[:2]):
            trained_BTV = model(tokens_BT[row : row + 1, :length], Context())
            if not trained_BTV.isfinite().all():
                return False, f"logits of {length} tokens are no numbers (topk)"
        together_BTV = model(tokens_BT, Context(selection="causal", lengths_B=lengths_B))
        for row, length in list(enumerate(lengths))[-6:]:
            alone_BTV = model(tokens_BT[row : row + 1, :length], Context(selection="causal"))
            bound = max(bound, ROUNDING * alone_BTV.abs().max().item())
            difference_BT = largest(together_BTV[row : row + 1, :length], alone_BTV)
            most = max(most, difference_BT.max().item())
    return most <= bound, f"alone and among strangers differ by {most:.1e} at most"
