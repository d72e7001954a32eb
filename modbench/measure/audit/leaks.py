"""Probes 1 and 2: what may not be known. No later token, no stranger in the batch.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modbench.measure.audit.finding import COARSE, ROUNDING, Outcome, Subject, largest
from modbench.measure.audit.state import moved_by_scoring
from modbench.model.context import Context
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder

#: In the model's own dtype a decision that hangs on the last digit may be tipped by a change that it
#: doesn't know of. That moves a token here and there, of one sequence, and later ones that attend to it;
#: a peek moves the last tokens before a change, and nothing earlier, or all sequences: the last `NEAR`
#: positions in so many of the changes, or any in so many.
NEAR, SHARE_NEAR, SHARE = 4, 0.03, 0.5
#: Up to how many tokens a sequence is asked at every place.
EVERY = 64
#: Of longer ones, so many places are drawn.
DRAWN = 32


@dataclass(frozen=True)
class Moves:
    """What changes did to earlier positions: the largest move of their logits, how many moved by more
    than rounding; and of the ``changes``, one to each place and sequence, before how many any did, and
    before how many the first that did is near."""

    most: float
    moved: int
    changes: int
    before_any: int
    before_near: int

    @property
    def tipped(self) -> bool:
        """Whether that is no more than decisions that rounding may tip."""
        return self.before_near <= SHARE_NEAR * self.changes and self.before_any <= SHARE * self.changes


@torch.no_grad()
def causal(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 1: tokens after t change, logits up to t do not, under the causal rule; in float64, and with
    a coarser measure in the model's own dtype, where a second text must say so, too. Every t is asked,
    of sequences of up to `EVERY` tokens; of longer ones the ends, the middle, both sides of powers of
    two, where windows and blocks end, and some that are drawn; all others are probe 3's, which decodes
    such a sequence token by token.
    Each t is a pass of its own with the same strangers, so that what a batch does stays probe 2's. Two
    equal passes give the same, and a trace in detail, as held-out text is scored with, changes no
    logit. And no text that is scored leaves anything behind for those that come after it."""
    if moved := moved_by_scoring(subject):
        return (
            False,
            f"{moved}, so a text may know what was scored before it; move that in training alone",
        )
    tokens_BT = tokens_BT[:4]  # the length matters here; the batch is probe 2's
    plain_BTV, again_BTV, told_BTV = (
        subject.exact(tokens_BT, Context(selection="causal", trace=Trace(detailed=detailed)))
        for detailed in (False, False, True)
    )
    if not plain_BTV.isfinite().all():
        return False, "logits are no numbers"
    bound = ROUNDING * max(1.0, plain_BTV.abs().max().item())
    off = largest(again_BTV, plain_BTV).max().item()
    if off > bound:
        return (
            False,
            f"two equal passes differ by {off:.1e}: what is drawn, or moves, is no leak to find",
        )
    off = largest(told_BTV, plain_BTV).max().item()
    if off > bound:
        return False, f"logits differ by {off:.1e} where the trace is detailed"
    exact = _moves(subject.exact, tokens_BT, ROUNDING, subject.seed)
    figure = f"{exact.moved} earlier positions moved, by {exact.most:.1e} at most"
    if subject.is_exact:
        return exact.moved == 0, figure
    for text_BT in subject.texts(tokens_BT):
        own = _moves(subject.own, text_BT, COARSE, subject.seed)
        if own.tipped:
            break
    only = "" if own.tipped or exact.moved else " only"
    figure += f", in {subject.dtype}{only} before {own.before_any} of {own.changes} changes"
    return exact.moved == 0 and own.tipped, figure


def _moves(model: RoutedDecoder, tokens_BT: Tensor, rounding: float, seed: int) -> Moves:
    generator = torch.Generator().manual_seed(seed)
    sequences, sequence = tokens_BT.shape
    before_BTV = model(tokens_BT, Context(selection="causal"))
    bound = rounding * max(1.0, before_BTV.abs().max().item())
    most, moved, changes, before_any, before_near = 0.0, 0, 0, 0, 0
    for place in _places(sequence, generator):
        shape = (sequences, sequence - place - 1)
        other_BT = torch.randint(model.config.vocabulary, shape, generator=generator)
        changed_BT = torch.cat((tokens_BT[:, : place + 1], other_BT.to(tokens_BT.device)), dim=1)
        after_BTV = model(changed_BT, Context(selection="causal"))
        difference_BT = largest(after_BTV[:, : place + 1], before_BTV[:, : place + 1])
        moved_BT = difference_BT > bound
        any_B, far_B = moved_BT.any(1), moved_BT[:, :-NEAR].any(1)
        most = max(most, difference_BT.max().item())
        moved += int(moved_BT.sum())
        changes += sequences
        before_any += int(any_B.sum())
        before_near += int((any_B & ~far_B).sum())
    return Moves(most, moved, changes, before_any, before_near)


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
    token; in float64, and in the model's own dtype, where strangers must not move more than half of the
    sequences of a batch, of a second text, too. Under the training rule all logits are numbers."""
    for lengths in _batches(*tokens_BT.shape):
        for row, length in enumerate(lengths[:2]):
            trained_BTV = subject.exact(tokens_BT[row : row + 1, :length], Context())
            if not trained_BTV.isfinite().all():
                return False, f"logits of {length} tokens are no numbers (topk)"
    exact = list(_strangers(subject.exact, tokens_BT, ROUNDING))
    most = max(off for offs, _ in exact for off in offs)
    passed = not any(off > bound for offs, bound in exact for off in offs)
    figure = f"alone and among strangers differ by {most:.1e} at most"
    if subject.is_exact:
        return passed, figure
    for text_BT in subject.texts(tokens_BT):
        own = [
            (sum(off > bound for off in offs), offs)
            for offs, bound in _strangers(subject.own, text_BT, COARSE)
        ]
        tipped = all(wrong <= SHARE * len(offs) for wrong, offs in own)
        if tipped:
            break
    only = "" if tipped or not passed else " only"
    most = max(off for _, offs in own for off in offs)
    return passed and tipped, f"{figure}, in {subject.dtype}{only} by {most:.1e}"


def _batches(sequences: int, sequence: int) -> Iterator[list[int]]:
    """Lengths of the sequences of each batch."""
    yield [max(1, sequence * (n + 1) // sequences) for n in range(sequences)]
    yield [min(n + 1, sequence) for n in range(sequences)]
    yield [sequence] * sequences


def _strangers(
    model: RoutedDecoder, tokens_BT: Tensor, rounding: float
) -> Iterator[tuple[list[float], float]]:
    """Of each batch: by how much its last sequences differ from what they are alone, and how much would
    be rounding."""
    bound = rounding
    for lengths in _batches(*tokens_BT.shape):
        ragged = min(lengths) < tokens_BT.shape[1]
        lengths_B = torch.tensor(lengths, device=tokens_BT.device) if ragged else None
        together_BTV = model(tokens_BT, Context(selection="causal", lengths_B=lengths_B))
        offs = []
        for row, length in list(enumerate(lengths))[-6:]:
            alone_BTV = model(tokens_BT[row : row + 1, :length], Context(selection="causal"))
            bound = max(bound, rounding * alone_BTV.abs().max().item())
            difference_BT = largest(together_BTV[row : row + 1, :length], alone_BTV)
            offs.append(difference_BT.max().item())
        yield offs, bound
