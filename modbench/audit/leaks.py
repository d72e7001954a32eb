"""Probes 1 and 2: logits depend on no later token and on no other sequence in the batch.

B sequences, T tokens, D model width, P edited places.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modbench.audit.finding import COARSE, ROUNDING, ModelSubject, Outcome, largest, ragged
from modbench.audit.state import NO_STATE, changed_by_scoring
from modbench.errors import several
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder
from modbench.train.numerics import autocast

#: Largest relative difference that counts as rounding under autocast to bfloat16.
CAST = 0.02
#: In a type of training a routing decision may depend on the last digit, and an edit that the layer
#: does not see may flip it: a few tokens of one sequence change, and later ones that attend to them. A
#: leak changes nearly all sequences. So a model passes if at most this share of the edits, or of the
#: sequences of a batch, change any.
SHARE = 0.5
#: The same for edits under autocast, where each layer has the same input: no edit changes a token of a
#: built-in router, preset or example, and a third change one of a top-k over 63 tokens.
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
REPEATED = f"two equal passes differ by {{}}; {NO_STATE}"
DETAILED = "logits differ by {} where the trace is detailed"
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

    def running(self, tokens_BT: Tensor) -> AbstractContextManager[None]:
        return autocast(torch.bfloat16, tokens_BT.device) if self.cast else nullcontext()


def _variants(subject: ModelSubject, *, first: bool) -> Iterator[Variant]:
    """Yield the model in float64; at the ``first`` shape with `Subject.scaled` scores; in its own dtype;
    and under autocast, as it is trained on a GPU."""
    yield Variant(subject.exact)
    for how, model in subject.scaled() if first else ():
        yield Variant(model, f"with router scores {how}", every=2)
    if not subject.is_exact:
        yield Variant(subject.own, f"in {subject.dtype}", COARSE, SHARE, every=4)
    if subject.dtype == torch.float32:
        yield Variant(subject.own, "under autocast to bfloat16", CAST, SHARE, every=4, cast=True)


@torch.no_grad()
def causal(subject: ModelSubject, tokens_BT: Tensor) -> Outcome:
    """Probe 1: replacing the tokens after t leaves the logits up to t unchanged under the causal rule;
    the input of the head is compared.

    Tested in float64; and in the model's own dtype and under autocast, with a coarser bound that most
    edits must meet. Every t is tested in sequences of up to `EVERY` tokens; in longer ones the middle,
    the end, both sides of powers of two, and random positions (probe 3 covers the others). In the
    coarser types it is every fourth one of these.

    Also, at the first shape: two equal passes agree, a detailed trace changes no logit, scoring leaves
    no state behind, and every second t is tested with `Subject.scaled` scores.
    """
    first = subject.is_first(tokens_BT)
    if first and (state := changed_by_scoring(subject)):
        return False, f"{state}: scores depend on texts scored before; update it in training only"
    # The length matters here; the batch is probe 2's.
    if wrong := _unrepeatable(subject, tokens_BT[:4]):
        return False, wrong
    figure = ""
    for variant in _variants(subject, first=first):
        texts = TEXTS if first and not variant.which else 1
        with variant.running(tokens_BT):
            most, changed = _changes(subject, variant, tokens_BT[:texts])
        by = sum(positions > 0 for positions in changed)
        tolerated = CAST_SHARE if variant.cast else variant.tolerated
        leaks = by > max(tolerated and 1, tolerated * len(changed))
        if (leaks and not variant.tolerated) or not figure:
            earlier = several(sum(changed), "earlier position")
            where = f"logits at {earlier}" if by else "no earlier logit"
            which = f", {variant.which}" if variant.which else ""
            figure = f"{where} changed (max {most:.2g}) when later tokens were replaced{which}"
        elif variant.tolerated:
            figure += f"; {variant.which}, {by} of {len(changed)} edits changed one"
        if leaks:
            return False, figure + mixing(subject, tokens_BT)
    return True, figure


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
    for name, (scorer, x_D) in given.items():
        other_D = x_D.clone()
        other_D[..., 1::2, :] = x_D.roll(2, -2)[..., 1::2, :]
        kept = (..., slice(0, None, 2), *[slice(None)] * (scorer(x_D).dim() - x_D.dim() + 1))
        if not torch.allclose(scorer(x_D)[kept], scorer(other_D)[kept], rtol=ROUNDING, atol=ROUNDING):
            return (
                f"; {name} ({type(scorer).__name__}) mixes positions: a scorer sees one token at a "
                "time (`modbench docs writing_a_router`, What a scorer may see)"
            )
    return ""


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
        before: list[Step] = []
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
Step = tuple[Tensor | None, Tensor]


def _steps(
    variant: Variant, text_BT: Tensor, before: Sequence[Step] = (), kept_BT: Tensor | None = None
) -> list[Step]:
    """The steps of a pass of which a change is measured: that of the whole model; under autocast those
    of each layer, whose input is that of ``before`` where ``kept_BT``, since in a deep model rounding of
    one layer flips decisions of the next."""
    model, context = variant.model, Context(selection="causal")
    if not (variant.cast and isinstance(model, RoutedDecoder)):
        return [(None, model.hidden(text_BT, context))]
    steps = list[Step]()

    def run(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
        if kept_BT is not None:
            x_BTD = torch.where(kept_BT[..., None], before[len(steps)][0], x_BTD)  # type: ignore[arg-type]
        out_BTD: Tensor = layer(x_BTD, context)
        steps.append((x_BTD, out_BTD))
        return out_BTD

    for _ in model.layer_by_layer(text_BT, context, run):
        pass
    return steps


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
    dtype and under autocast, where at most half of the sequences of a batch may differ. Under the
    training rule all logits are finite, down to one token."""
    for length in (1, 2, tokens_BT.shape[1]):
        trained_BTD = subject.exact.hidden(tokens_BT[:1, :length], Context())
        if not trained_BTD.isfinite().all():
            return False, f"logits of {several(length, 'token')} contain NaN or Inf (topk)"
    first = subject.is_first(tokens_BT)
    figure = ""
    for variant in _variants(subject, first=first):
        short = first and not variant.which
        with variant.running(tokens_BT):
            batches = list(_differences(variant, tokens_BT, short=short))
        most = max(off for offs, _ in batches for off in offs)
        share = max(sum(off > bound for off in offs) / len(offs) for offs, bound in batches)
        if (share > variant.tolerated and not variant.tolerated) or not figure:
            which = f", {variant.which}" if variant.which else ""
            figure = f"logits of a sequence alone and in a batch differ by up to {most:.2g}{which}"
        elif variant.tolerated:
            figure += f"; {variant.which} by {most:.2g}"
        if share > variant.tolerated:
            return False, figure + mixing(subject, tokens_BT)
    return True, figure


def _batches(sequences: int, sequence: int, *, short: bool) -> Iterator[list[int]]:
    """Lengths of the sequences of each batch; one batch of very ``short`` ones, if asked for."""
    yield [max(1, sequence * (n + 1) // sequences) for n in range(sequences)]
    if short:
        yield [min(n + 1, sequence) for n in range(sequences)]
    yield [sequence] * sequences


def _differences(
    variant: Variant, tokens_BT: Tensor, *, short: bool
) -> Iterator[tuple[list[float], float]]:
    """For each batch: how much each of its last sequences differs from the same sequence alone, and the
    bound of rounding."""
    model = variant.model
    alone: dict[tuple[int, int], Tensor] = {}
    for lengths in _batches(*tokens_BT.shape, short=short):
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
