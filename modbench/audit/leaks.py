"""Probes 1 and 2: logits depend on no later token and on no other sequence in the batch.

B sequences, T tokens, D model width, P edited places.
"""

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from modbench.audit.finding import (
    COARSE,
    ROUNDING,
    ModelSubject,
    Outcome,
    largest,
    ragged,
)
from modbench.audit.state import changed_by_scoring
from modbench.errors import several
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace

#: In the model's own dtype a routing decision may depend on the last digit, and an edit that the layer
#: does not see may flip it: a few tokens of one sequence change, and later ones that attend to them. A
#: leak changes nearly all sequences. So a model passes if at most this share of the edits, or of the
#: sequences of a batch, change any.
SHARE = 0.5
#: Up to this length, every position is tested.
EVERY = 64
#: Number of random positions tested in a longer sequence; each takes a row of a pass.
DRAWN = 2
#: Number of texts that are edited at the first shape, since an edit doesn't flip every decision.
TEXTS = 2
#: Edited copies of a text in one batch: more save passes and take more memory.
COPIES = 8
REPEATED = "two equal passes differ by {}; scoring must not draw random numbers"
DETAILED = "logits differ by {} where the trace is detailed"
SCALED = "with router scores {}"
#: Last sequences of a batch that are compared with the same sequences alone; each takes a pass.
TESTED = 3


@torch.no_grad()
def causal(subject: ModelSubject, tokens_BT: Tensor) -> Outcome:
    """Probe 1: replacing the tokens after t leaves the logits up to t unchanged under the causal rule;
    the input of the head is compared.

    Tested in float64, and in the model's own dtype with a coarser bound that most edits must meet. Every
    t is tested in sequences of up to `EVERY` tokens; in longer ones the middle, the end, both
    sides of powers of two, and random positions (probe 3 covers the others). In the model's own dtype it
    is every fourth one of these.

    Also, at the first shape: two equal passes agree, a detailed trace changes no logit, scoring leaves
    no state behind, and every second t is tested with `Subject.scaled` scores.
    """
    if subject.is_first(tokens_BT) and (state := changed_by_scoring(subject)):
        return False, f"{state}: scores depend on texts scored before; update it in training only"
    # The length matters here; the batch is probe 2's.
    if wrong := _unrepeatable(subject, tokens_BT[:4]):
        return False, wrong
    texts_BT = tokens_BT[: TEXTS if subject.is_first(tokens_BT) else 1]
    most, changed = _changes(subject, subject.exact, texts_BT, ROUNDING)
    earlier = several(sum(changed), "earlier position")
    where = f"logits at {earlier}" if any(changed) else "no earlier logit"
    figure = f"{where} changed (max {most:.2g}) when later tokens were replaced"
    scaled = subject.scaled if subject.is_first(tokens_BT) and not any(changed) else {}
    for how, model in scaled.items():
        most, changed = _changes(subject, model, tokens_BT[:1], ROUNDING, every=2)
        if any(changed):
            earlier = several(sum(changed), "earlier position")
            return False, (
                f"logits at {earlier} changed (max {most:.2g}) when later tokens were replaced, "
                f"{SCALED.format(how)}"
            )
    if subject.is_exact or any(changed):
        return not any(changed), figure
    _, changed = _changes(subject, subject.own, tokens_BT[:1], COARSE, every=4)
    by = sum(positions > 0 for positions in changed)
    is_rounding = by <= SHARE * len(changed)
    return is_rounding, f"{figure}; in {subject.dtype}, {by} of {len(changed)} edits changed one"


def _unrepeatable(subject: ModelSubject, tokens_BT: Tensor) -> str:
    """Describe logits that are not finite, or that differ in a second pass or where the trace is
    detailed; empty if they are as they should be."""
    first_BTD, *others = (
        subject.exact.hidden(tokens_BT, Context(selection="causal", trace=Trace(detailed=detailed)))
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
    subject: ModelSubject, model: LanguageModel, tokens_BT: Tensor, rounding: float, *, every: int = 1
) -> tuple[float, list[int]]:
    """The largest change of the logits of positions before edits at `_places`; and for each edit of each
    text, how many of these changed by more than rounding. `COPIES` edits of a text run as one batch."""
    on = tokens_BT.device
    sequence = tokens_BT.shape[1]
    places = _places(sequence, subject.seed)[::every]
    most = 0.0
    changed = list[int]()
    for number, text_T in enumerate(tokens_BT):
        others_PT = subject.tokens(len(places), sequence, draw=2 + number)
        copies = 0
        for first in range(0, len(places), COPIES):
            places_B = torch.tensor(places[first : first + COPIES], device=on)
            other_BT = others_PT[first : first + COPIES]
            text_BT = text_T.expand(len(places_B), -1)
            kept_BT = torch.arange(sequence, device=on) <= places_B[:, None]
            if len(text_BT) != copies:
                before_BTD = model.hidden(text_BT, Context(selection="causal"))
                copies = len(text_BT)
                bound = rounding * max(1.0, before_BTD.abs().max().item())
            edited_BT = torch.where(kept_BT, text_BT, other_BT)
            after_BTD = model.hidden(edited_BT, Context(selection="causal"))
            difference_BT = largest(after_BTD, before_BTD).where(kept_BT, 0.0)
            most = max(most, difference_BT.max().item())
            changed += (difference_BT > bound).sum(1).tolist()
    return most, changed


def _places(sequence: int, seed: int) -> list[int]:
    """Positions of the last token that an edit keeps."""
    if sequence <= EVERY:
        return list(range(sequence - 1))
    positions = {sequence // 2, sequence - 2}
    for power in range(EVERY.bit_length() - 1, sequence.bit_length()):
        positions |= {2**power - 2, 2**power - 1}
    positions |= set(random.Random(seed).sample(range(sequence - 1), DRAWN))
    return sorted(position for position in positions if position < sequence - 1)


@torch.no_grad()
def batch_invariant(subject: ModelSubject, tokens_BT: Tensor) -> Outcome:
    """Probe 2: a sequence has the same logits alone and in a batch, padded and not, down to one token;
    the input of the head is compared.

    Tested in float64, at the first shape with `Subject.scaled` scores, too; and in the model's own
    dtype, where at most half of the sequences of a batch may differ. Under the training rule all logits
    are finite, down to one token."""
    for length in (1, 2, tokens_BT.shape[1]):
        trained_BTD = subject.exact.hidden(tokens_BT[:1, :length], Context())
        if not trained_BTD.isfinite().all():
            return False, f"logits of {several(length, 'token')} contain NaN or Inf (topk)"
    short = subject.is_first(tokens_BT)
    exact = list(_differences(subject.exact, tokens_BT, ROUNDING, short=short))
    most = max(off for offs, _ in exact for off in offs)
    figure = f"logits of a sequence alone and in a batch differ by up to {most:.2g}"
    wrong = any(off > bound for offs, bound in exact for off in offs)
    for how, model in subject.scaled.items() if short and not wrong else ():
        differences = list(_differences(model, tokens_BT, ROUNDING, short=False))
        if any(off > bound for offs, bound in differences for off in offs):
            most = max(off for offs, _ in differences for off in offs)
            return False, (
                f"logits of a sequence alone and in a batch differ by up to {most:.2g}, "
                f"{SCALED.format(how)}"
            )
    if subject.is_exact or wrong:
        return not wrong, figure
    differences = list(_differences(subject.own, tokens_BT, COARSE, short=False))
    is_rounding = (
        max(sum(off > bound for off in offs) / len(offs) for offs, bound in differences) <= SHARE
    )
    most = max(off for offs, _ in differences for off in offs)
    return is_rounding, f"{figure}; in {subject.dtype} by {most:.2g}"


def _batches(sequences: int, sequence: int, *, short: bool) -> Iterator[list[int]]:
    """Lengths of the sequences of each batch; one batch of very ``short`` ones, if asked for."""
    yield [max(1, sequence * (n + 1) // sequences) for n in range(sequences)]
    if short:
        yield [min(n + 1, sequence) for n in range(sequences)]
    yield [sequence] * sequences


def _differences(
    model: LanguageModel, tokens_BT: Tensor, rounding: float, *, short: bool
) -> Iterator[tuple[list[float], float]]:
    """For each batch: how much each of its last sequences differs from the same sequence alone, and the
    bound of rounding."""
    alone: dict[tuple[int, int], Tensor] = {}
    for lengths in _batches(*tokens_BT.shape, short=short):
        batch_BT = tokens_BT[:, : max(lengths)]
        context = Context(selection="causal", lengths_B=ragged(lengths, batch_BT))
        together_BTD = model.hidden(batch_BT, context)
        bound = rounding
        offs = []
        for row, length in list(enumerate(lengths))[-TESTED:]:
            if (row, length) not in alone:
                text_1T = tokens_BT[row : row + 1, :length]
                alone[row, length] = model.hidden(text_1T, Context(selection="causal"))
            alone_BTD = alone[row, length]
            bound = max(bound, rounding * alone_BTD.abs().max().item())
            difference_BT = largest(together_BTD[row : row + 1, :length], alone_BTD)
            offs.append(difference_BT.max().item())
        yield offs, bound
