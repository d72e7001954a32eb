"""Probes 1 and 2: logits depend on no later token and on no other sequence in the batch.

B sequences, T tokens, D model width, P edited places.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modbench.audit.finding import COARSE, ROUNDING, ModelSubject, Outcome, largest, passes, ragged
from modbench.audit.state import changed_by_scoring
from modbench.errors import several
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder
from modbench.routing.plugin_fault import raised
from modbench.train.numerics import autocast
from modbench.train.out_of_memory import failed_allocation

#: Largest relative difference that counts as rounding under autocast to bfloat16.
CAST = 0.02
#: In a type of training a routing decision may depend on the last digit, and an edit that the layer
#: does not see may flip it: a few tokens of one sequence change, and later ones that attend to them. A
#: leak changes nearly all sequences. So a model passes if one of the edits, or of the sequences of a
#: batch, changes, or at most this share.
SHARE = 0.5
#: The same under autocast, where each layer has the same input: no edit changes a token of a built-in
#: router, preset or example, and a third of them change one of a top-k over 63 tokens.
CAST_SHARE = 0.125
#: Under autocast a decision flips in most sequences of a deep model: there a sequence differs if more
#: than the other positions do, and not these.
ALL_BUT = 0.8
#: Up to this length, every position is tested.
EVERY = 64
#: Number of random positions tested in a longer sequence; each takes a row of a pass.
DRAWN = 2
#: Number of texts that are edited at the first shape, since an edit doesn't flip every decision.
TEXTS = 2
#: Edited copies of a text in one batch: more save passes and take more memory.
COPIES = 8
#: Last sequences of a batch that are compared with the same sequences alone; each takes a pass.
TESTED = 3


@dataclass(frozen=True)
class Variant:
    """A copy of the model under audit, and how it is run. ``tolerated``: the share of tests that may
    differ by more than ``rounding``. ``every``: of the places of edits, each such one is tested."""

    model: LanguageModel
    which: str = ""
    rounding: float = ROUNDING
    tolerated: float = 0.0
    every: int = 1
    cast: bool = False

    def leaks(self, differ: int, tests: int) -> bool:
        """Return True if rounding cannot explain that ``differ`` of the ``tests`` differ."""
        return differ > (max(1, self.tolerated * tests) if self.tolerated else 0)


def _variants(subject: ModelSubject, *, first: bool) -> Iterator[Variant]:
    """Yield the model in float64; at the ``first`` shape with `Subject.scaled` scores; in its own dtype;
    and under autocast, as it is trained on a GPU."""
    yield Variant(subject.exact)
    for how, model in subject.scaled() if first else ():
        yield Variant(model, f"with router scores {how}", every=2)
    if subject.dtype != torch.float64:
        yield Variant(subject.own, f"in {subject.dtype}", COARSE, SHARE, every=4)
    if subject.dtype == torch.float32:
        yield Variant(subject.own, "under autocast to bfloat16", CAST, CAST_SHARE, every=4, cast=True)


def _in_all(
    subject: ModelSubject, tokens_BT: Tensor, test: Callable[[Variant], tuple[bool, str, str]]
) -> Outcome:
    """Outcome of a ``test`` of each variant: True if it leaks; what the line says of the first variant,
    or of one that leaks in float64; and what it adds of another."""
    figure = ""
    for variant in _variants(subject, first=subject.is_first(tokens_BT)):
        try:
            with autocast(torch.bfloat16, tokens_BT.device) if variant.cast else nullcontext():
                leaks, whole, more = test(variant)
        except RuntimeError as error:  # of two types that an op does not mix
            if not variant.cast or failed_allocation(error) is not None:
                raise
            leaks, more = False, f" it {raised(error, remedy='')}, so it trains in float32 alone"
        if not figure or (leaks and not variant.tolerated):
            figure = whole + (f", {variant.which}" if variant.which else "")
        elif variant.tolerated:
            figure += f"; {variant.which}{more}"
        if leaks:
            return False, figure + mixing(subject, tokens_BT)
    return True, figure


@torch.no_grad()
def causal(subject: ModelSubject, tokens_BT: Tensor) -> Outcome:
    """Probe 1: replacing the tokens after t leaves the logits up to t unchanged under the causal rule;
    the input of the head is compared, in each of the `_variants`; in coarser types most edits must meet
    a coarser bound. Every t is tested in sequences of up to `EVERY` tokens; in longer ones the middle,
    the end, both sides of powers of two, and random positions (probe 3 covers the others).

    Also: two equal passes agree; at the first shape, a detailed trace changes no logit, and scoring
    leaves no state behind."""
    first = subject.is_first(tokens_BT)
    if first and (state := changed_by_scoring(subject)):
        return False, f"{state}: scores depend on texts scored before; update it in training only"
    few_BT = tokens_BT[:4]  # the length matters here; the batch is probe 2's
    one_BTD, other_BTD = (
        subject.exact.hidden(few_BT, Context(selection="causal", trace=Trace(detailed=detailed)))
        for detailed in (False, first)
    )
    if not one_BTD.isfinite().all():
        return False, "logits contain NaN or Inf"
    off = largest(other_BTD, one_BTD).max().item()
    if off > ROUNDING * max(1.0, one_BTD.abs().max().item()):
        where = "where the trace is detailed" if first else "in a second pass"
        return False, f"logits differ by {off:.1e} {where}"

    def edited(variant: Variant) -> tuple[bool, str, str]:
        texts = TEXTS if first and not variant.which else 1
        most, changed = _changes(subject, variant, tokens_BT[:texts])
        by = sum(positions > 0 for positions in changed)
        logits = f"logits at {several(sum(changed), 'earlier position')}" if by else "no earlier logit"
        whole = f"{logits} changed (max {most:.2g}) when later tokens were replaced"
        more = f", {by} of {len(changed)} edits changed one"
        return variant.leaks(by, len(changed)), whole, more

    return _in_all(subject, tokens_BT, edited)


@torch.no_grad()
def mixing(subject: ModelSubject, tokens_BT: Tensor) -> str:
    """Name the first scorer whose score of a token depends on other tokens, the likely cause of a leak;
    empty if there is none."""
    given: dict[str, tuple[nn.Module, Tensor]] = {}
    model = subject.exact
    hooks = [
        module.register_forward_pre_hook(lambda of, args, name=name: given.update({name: (of, args[0])}))
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "router"
    ]
    model.hidden(tokens_BT[:2], Context(selection="causal"))
    for hook in hooks:
        hook.remove()
    where = "(`modbench docs writing_a_router`, What a scorer may see)"
    for name, (scorer, x_D) in given.items():
        scores, again = scorer(x_D), scorer(x_D)
        if not torch.equal(scores, again):  # random
            continue
        last = scores.dim() - x_D.dim() + 1  # dimensions after the position
        of, half = [slice(None)] * last, x_D.shape[-2] // 2
        alike = (slice(0, None, 2), slice(0, half), slice(half, None))
        kinds: Any = (*((..., rows, *of) for rows in alike), (0, ..., *of))
        for kept in kinds:
            x_kept = (*kept[: len(kept) - last], slice(None))
            other_D = x_D.flip(tuple({0, x_D.dim() - 2})) + 1.0
            other_D[x_kept] = x_D[x_kept]
            others = scorer(other_D)
            if not torch.allclose(scores[kept], others[kept], rtol=ROUNDING, atol=ROUNDING):
                mixes = f"{name} ({type(scorer).__name__}) mixes positions"
                return f"; {mixes}: a scorer sees one token at a time {where}"
    return ""


def _changes(subject: ModelSubject, variant: Variant, tokens_BT: Tensor) -> tuple[float, list[int]]:
    """The largest change of the logits of positions before edits at `_places`; and for each edit of each
    text, how many of these changed by more than rounding. `COPIES` edits of a text run as one batch."""
    on = tokens_BT.device
    sequence = tokens_BT.shape[1]
    places = _places(sequence, subject.seed)[:: variant.every]
    most = 0.0
    changed = list[int]()
    for number, text_T in enumerate(tokens_BT):
        others_PT = subject.tokens(len(places), sequence, draw=2 + number)
        before: list[Change] = []
        for first in range(0, len(places), COPIES):
            places_B = torch.tensor(places[first : first + COPIES], device=on)
            other_BT = others_PT[first : first + COPIES]
            text_BT = text_T.expand(len(places_B), -1)
            kept_BT = torch.arange(sequence, device=on) <= places_B[:, None]
            if not before or len(before[0][1]) != len(text_BT):
                before = _steps(variant, text_BT)
            after = _steps(variant, torch.where(kept_BT, text_BT, other_BT), before, kept_BT)
            beyond_BT = torch.zeros_like(kept_BT)
            for (x_BTD, out_BTD), (_, other_BTD) in zip(before, after, strict=True):
                moved_BTD = out_BTD if x_BTD is None else out_BTD - x_BTD
                scale = max(1.0 if x_BTD is None else 0.0, moved_BTD.abs().max().item())
                difference_BT = largest(other_BTD, out_BTD).where(kept_BT, 0.0)
                most = max(most, difference_BT.max().item())
                beyond_BT |= difference_BT > variant.rounding * scale
            changed += beyond_BT.sum(1).tolist()
    return most, changed


#: The input of a layer and its output, (B, T, D) each; or nothing, and the input of the head.
Change = tuple[Tensor | None, Tensor]


def _steps(
    variant: Variant, text_BT: Tensor, before: Sequence[Change] = (), kept_BT: Tensor | None = None
) -> list[Change]:
    """The steps of a pass of which a change is measured: that of the whole model; under autocast those
    of each layer, whose input is that of ``before`` where ``kept_BT``, since in a deep model rounding of
    one layer flips decisions of the next."""
    model = variant.model
    if not (variant.cast and isinstance(model, RoutedDecoder)):
        return [(None, model.hidden(text_BT, Context(selection="causal")))]
    inputs = (x_BTD for x_BTD, _ in before)

    def run(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
        if kept_BT is not None:
            x_BTD = torch.where(kept_BT[..., None], next(inputs), x_BTD)  # type: ignore[arg-type]
        return layer(x_BTD, context)  # type: ignore[no-any-return]

    return [(step.x_BTD, step.out_BTD) for step in passes(model, text_BT, ("causal",), run)]


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
    the input of the head is compared, in each of the `_variants`; in coarser types, some of a batch may
    differ. Under the training rule all logits are finite, down to one token."""
    for length in (1, 2, tokens_BT.shape[1]):
        trained_BTD = subject.exact.hidden(tokens_BT[:1, :length], Context())
        if not trained_BTD.isfinite().all():
            return False, f"logits of {several(length, 'token')} contain NaN or Inf (topk)"

    def batched(variant: Variant) -> tuple[bool, str, str]:
        short = subject.is_first(tokens_BT) and not variant.which
        batches = list(_differences(variant, tokens_BT, short=short))
        leaks = any(variant.leaks(sum(o > bound for o in offs), len(offs)) for offs, bound in batches)
        most = max(off for offs, _ in batches for off in offs)
        whole = f"logits of a sequence alone and in a batch differ by up to {most:.2g}"
        return leaks, whole, f" by {most:.2g}"

    return _in_all(subject, tokens_BT, batched)


def _differences(
    variant: Variant, tokens_BT: Tensor, *, short: bool
) -> Iterator[tuple[list[float], float]]:
    """For each batch (one of very ``short`` sequences, if asked for): how much each of its last
    sequences differs from the same sequence alone, and the bound of rounding."""
    model = variant.model
    alone: dict[tuple[int, int], Tensor] = {}
    rows, sequence = tokens_BT.shape
    batches = [[max(1, sequence * (n + 1) // rows) for n in range(rows)], [sequence] * rows]
    if short:
        batches.insert(1, [min(n + 1, sequence) for n in range(rows)])
    for lengths in batches:
        batch_BT = tokens_BT[:, : max(lengths)]
        context = Context(selection="causal", lengths_B=ragged(lengths, batch_BT))
        together_BTD = model.hidden(batch_BT, context)
        bound = variant.rounding
        offs = []
        for row, length in list(enumerate(lengths))[-TESTED:]:
            if (row, length) not in alone:
                text_1T = tokens_BT[row : row + 1, :length]
                alone[row, length] = model.hidden(text_1T, Context(selection="causal"))
            alone_BTD = alone[row, length]
            bound = max(bound, variant.rounding * alone_BTD.abs().max().item())
            difference_BT = largest(together_BTD[row : row + 1, :length], alone_BTD)
            offs.append(difference_BT.quantile(ALL_BUT if variant.cast else 1.0).item())
        yield offs, bound
