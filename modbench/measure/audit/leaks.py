"""Probes 1 and 2: logits depend on no later token and on no other sequence in the batch.

B sequences, T tokens, D model width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from modbench.measure.audit.finding import COARSE, ROUNDING, Outcome, Subject, hidden, largest, ragged
from modbench.measure.audit.state import changed_by_scoring
from modbench.model.context import Context
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder

#: In the model's own dtype a routing decision may depend on the last digit, and an edit that the layer
#: does not see may flip it: a few tokens of one sequence change, and later ones that attend to them. A
#: leak changes nearly all sequences. So a model passes if at most this share of the edits, or of the
#: sequences of a batch, change any.
SHARE = 0.5
#: Up to this length, every position is tested.
EVERY = 64
#: Number of random positions tested in a longer sequence.
DRAWN = 4
REPEATED = "two equal passes differ by {}; scoring must not draw random numbers"
DETAILED = "logits differ by {} where the trace is detailed"
#: Last sequences of a batch that are compared with the same sequences alone.
TESTED = 3


@torch.no_grad()
def causal(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 1: replacing the tokens after t leaves the logits up to t unchanged under the causal rule;
    the input of the head is compared.

    Tested in float64, and in the model's own dtype with a coarser bound that one of two texts must meet.
    Every t is tested in sequences of up to `EVERY` tokens; in one longer one the ends, the middle, both
    sides of powers of two, and random positions (probe 3 covers the others). In the model's own dtype it
    is every fourth one of these.

    Also, at the first shape: two equal passes agree, a detailed trace changes no logit, and scoring
    leaves no state behind.
    """
    if subject.is_first(tokens_BT) and (state := changed_by_scoring(subject)):
        return False, f"{state}: scores depend on texts scored before; update it in training only"
    # The length matters here; the batch is probe 2's.
    tokens_BT = tokens_BT[: 4 if tokens_BT.shape[1] <= EVERY else 1]
    if wrong := _unrepeatable(subject, tokens_BT):
        return False, wrong
    most, changed = _changes(subject.exact, tokens_BT[:1], ROUNDING, subject.seed)
    figure = f"{sum(changed)} earlier positions changed, by up to {most:.1e}"
    if subject.is_exact or any(changed):
        return not any(changed), figure
    for text_BT in subject.texts(tokens_BT):
        _, changed = _changes(subject.own, text_BT, COARSE, subject.seed, every=4)
        by = sum(positions > 0 for positions in changed)
        if is_rounding := by <= SHARE * len(changed):
            break
    only = "" if is_rounding else " only"
    return is_rounding, f"{figure}, in {subject.dtype}{only} by {by} of {len(changed)} edits"


def _unrepeatable(subject: Subject, tokens_BT: Tensor) -> str:
    """Describe logits that are not finite, or that differ in a second pass or where the trace is
    detailed; empty if they are as they should be."""
    first_BTD, *others = (
        hidden(subject.exact, tokens_BT, Context(selection="causal", trace=Trace(detailed=detailed)))
        for detailed in ((False, False, True) if subject.is_first(tokens_BT) else (False,))
    )
    if not first_BTD.isfinite().all():
        return "logits contain NaN or Inf"
    bound = ROUNDING * max(1.0, first_BTD.abs().max().item())
    for other_BTD, what in zip(others, (REPEATED, DETAILED), strict=False):
        if (off := largest(other_BTD, first_BTD).max().item()) > bound:
            return what.format(f"{off:.1e}")
    return ""


def _changes(
    model: RoutedDecoder, tokens_BT: Tensor, rounding: float, seed: int, *, every: int = 1
) -> tuple[float, list[int]]:
    """The largest change of the logits of positions before edits at `_places`; and for each edit and
    sequence, how many of these changed by more than rounding."""
    generator = torch.Generator().manual_seed(seed)
    sequences, sequence = tokens_BT.shape
    before_BTD = hidden(model, tokens_BT, Context(selection="causal"))
    bound = rounding * max(1.0, before_BTD.abs().max().item())
    most, changed = 0.0, list[int]()
    for place in _places(sequence, generator)[::every]:
        shape = (sequences, sequence - place - 1)
        other_BT = torch.randint(model.config.vocabulary, shape, generator=generator)
        edited_BT = torch.cat((tokens_BT[:, : place + 1], other_BT.to(tokens_BT.device)), dim=1)
        after_BTD = hidden(model, edited_BT, Context(selection="causal"))
        difference_BT = largest(after_BTD[:, : place + 1], before_BTD[:, : place + 1])
        most = max(most, difference_BT.max().item())
        changed += (difference_BT > bound).sum(1).tolist()
    return most, changed


def _places(sequence: int, generator: torch.Generator) -> list[int]:
    """Positions of the last token that an edit keeps."""
    if sequence <= EVERY:
        return list(range(sequence - 1))
    places = {0, sequence // 2, sequence - 8, sequence - 2}
    for power in range(EVERY.bit_length() - 1, sequence.bit_length()):
        places |= {2**power - 2, 2**power - 1}
    places |= set(torch.randperm(sequence - 1, generator=generator)[:DRAWN].tolist())
    return sorted(place for place in places if place < sequence - 1)


@torch.no_grad()
def batch_invariant(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 2: a sequence has the same logits alone and in a batch, padded and not, down to one token;
    the input of the head is compared.

    Tested in float64; and in the model's own dtype, where at most half of the sequences of a batch may
    differ, in one of two texts. Under the training rule all logits are finite."""
    short = subject.is_first(tokens_BT)
    for lengths in _batches(*tokens_BT.shape, short=short):
        for row, length in enumerate(lengths[: 1 + short]):
            trained_BTV = subject.exact(tokens_BT[row : row + 1, :length], Context())
            if not trained_BTV.isfinite().all():
                return False, f"logits of {length} tokens contain NaN or Inf (topk)"
    exact = list(_differences(subject.exact, tokens_BT, ROUNDING, short=short))
    most = max(off for offs, _ in exact for off in offs)
    figure = f"alone and in a batch differ by up to {most:.1e}"
    if subject.is_exact or any(off > bound for offs, bound in exact for off in offs):
        return not any(off > bound for offs, bound in exact for off in offs), figure
    for text_BT in subject.texts(tokens_BT):
        own = list(_differences(subject.own, text_BT, COARSE, short=short))
        wrong = (sum(off > bound for off in offs) / len(offs) for offs, bound in own)
        if is_rounding := max(wrong) <= SHARE:
            break
    only = "" if is_rounding else " only"
    most = max(off for offs, _ in own for off in offs)
    return is_rounding, f"{figure}, in {subject.dtype}{only} by {most:.1e}"


def _batches(sequences: int, sequence: int, *, short: bool) -> Iterator[list[int]]:
    """Lengths of the sequences of each batch; one batch of very ``short`` ones, if asked for."""
    yield [max(1, sequence * (n + 1) // sequences) for n in range(sequences)]
    if short:
        yield [min(n + 1, sequence) for n in range(sequences)]
    yield [sequence] * sequences


def _differences(
    model: RoutedDecoder, tokens_BT: Tensor, rounding: float, *, short: bool
) -> Iterator[tuple[list[float], float]]:
    """For each batch: how much each of its last sequences differs from the same sequence alone, and the
    bound of rounding."""
    for lengths in _batches(*tokens_BT.shape, short=short):
        context = Context(selection="causal", lengths_B=ragged(lengths, tokens_BT))
        together_BTD = hidden(model, tokens_BT, context)
        bound, offs = rounding, []
        for row, length in list(enumerate(lengths))[-TESTED:]:
            alone_BTD = hidden(model, tokens_BT[row : row + 1, :length], Context(selection="causal"))
            bound = max(bound, rounding * alone_BTD.abs().max().item())
            difference_BT = largest(together_BTD[row : row + 1, :length], alone_BTD)
            offs.append(difference_BT.max().item())
        yield offs, bound
