"""A correct depth router, and mutants of it that the audit must catch: each overrides one method, and
has the name of its bug and the number of the probe that finds it.

B sequences, T tokens, D model width; R sequences with selected tokens, K the most of one sequence.
"""

import random
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.audit import Finding, findings
from modbench.audit.finding import Outcome, Subject
from modbench.audit.learning import gradient
from modbench.audit.warmed import take_step
from modbench.ledger import Counts, Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.init import normal_
from modbench.model.kv_cache import Cache
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.build import build_model
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.routing.router import Router
from modbench.routing.topk import capacity_tokens, counts_to_host, highest, score

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
#: Layers by name of their bug, and the probe that finds it.
MUTANTS: dict[str, type["Right"]] = {}
FOUND_BY: dict[str, int] = {}


@dataclass(frozen=True, kw_only=True)
class Depth(Router):
    """Routes a share of each sequence's tokens through every second block, with the bug ``bug``."""

    name = "depth"

    bug: str = "right"
    capacity: float = 0.25
    gate: Literal["linear", "scaled_sigmoid"] = "linear"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return MUTANTS[self.bug](self, model, layer) if layer % 2 else Block(model, layer)


class Right(Layer):
    def __init_subclass__(cls, bug: str = "", probe: int = 0) -> None:
        super().__init_subclass__()
        if bug:
            MUTANTS[bug], FOUND_BY[bug] = cls, probe

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.options, self.model, self.layer = options, model, layer
        self.block = Block(model, layer)
        self.router = nn.Parameter(torch.empty(1, model.width))
        self.predictor = nn.Parameter(torch.empty(1, model.width))

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"router {self.layer}")
        normal_(self.predictor, seed, f"predictor {self.layer}")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", self.layer):
            scores_BT = score(x_BTD, self.router).squeeze(-1)
        with component("predictor", self.layer):
            hints_BT = score(F.rms_norm(x_BTD.detach(), x_BTD.shape[-1:]), self.predictor).squeeze(-1)
        selected_BT = self.selected(scores_BT, hints_BT, context)
        if context.selection == "topk":
            errors_BT = self.errors(hints_BT, selected_BT.to(hints_BT.dtype))
            context.trace.loss(self.layer, "predictor", 0.01 * self.mean(errors_BT, context))
        nominal = [*map(self.capacity_tokens, context.lengths(x_BTD))]
        counts = counts_to_host(selected_BT.sum(1), nominal)
        context.trace.show(self.layer, "selected", selected_BT)
        context.trace.count(self.layer, "depth", counts)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        return self.processed(x_BTD, selected_BT, counts, scores_BT, context) if any(counts) else x_BTD

    def ledger(self, workload: Workload) -> Ledger:
        new, past = incremental_counts(self.capacity_tokens, workload.lengths, workload.past)
        inner = workload.routed(
            workload.counts.get((self.layer, "depth"), new),
            workload.counts.get((self.layer, "past"), past),
        )
        every = {"rows": workload.slots, "inner": self.model.width, "columns": 1}
        total = matmul(workload, self.layer, "router", **every)
        total += matmul(workload, self.layer, "predictor", input_gradient=False, **every)
        return total + self.block.ledger(inner) if max(inner.lengths) else total

    def nominal_counts(self, workload: Workload) -> Counts:
        return {(self.layer, "depth"): tuple(map(self.capacity_tokens, workload.lengths))}

    def capacity_tokens(self, tokens: int) -> int:
        return capacity_tokens(self.options.capacity, tokens)

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        if context.selection == "topk":
            return self.highest(scores_BT, context)
        real_BT = context.real(scores_BT)
        return self.likely(hints_BT, context) & (True if real_BT is None else real_BT)

    def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
        counts = [self.capacity_tokens(n) for n in context.lengths(scores_BT)]
        return highest(scores_BT.detach(), counts, context.real(scores_BT))

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        return hints_BT >= 0.3

    def errors(self, hints_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(hints_BT, targets_BT, reduction="none")

    def mean(self, errors_BT: Tensor, context: Context) -> Tensor:
        real_BT = context.real(errors_BT)
        return errors_BT.mean() if real_BT is None else errors_BT[real_BT[: len(errors_BT)]].mean()

    def processed(
        self,
        x_BTD: Tensor,
        selected_BT: Tensor,
        counts: list[int],
        scores_BT: Tensor,
        context: Context,
    ) -> Tensor:
        inner = GatheredTokens(x_BTD, selected_BT, counts, context, layer=self.layer)
        delta_RKD = self.delta(inner, inner.gather(scores_BT))
        gate_RK = self.gate(inner.gather(scores_BT))
        return inner.add_to(x_BTD, self.added(inner.x_RKD, delta_RKD, gate_RK[..., None]))

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        return self.block.delta(inner.x_RKD, inner.context)

    def gate(self, scores_RK: Tensor) -> Tensor:
        return scores_RK if self.options.gate == "linear" else 2 * scores_RK.sigmoid()

    def added(self, x_RKD: Tensor, delta_RKD: Tensor, gate_RK1: Tensor) -> Tensor:
        return gate_RK1 * delta_RKD


MUTANTS["right"] = Right


def mutant(bug: str, probe: int, of: type[Right] = Right, **methods: Any) -> None:
    """Add the mutant of ``of`` that has these methods in place of its own."""
    type("Mutant", (of,), methods, bug=bug, probe=probe)


def without(ledger: Ledger, component: str) -> Ledger:
    return Ledger({key: flops for key, flops in ledger if key[1] != component})


def alone(hints_BT: Tensor, context: Context) -> bool:
    """Return True for one token of each sequence with a cache."""
    return context.cache is not None and hints_BT.shape[1] == 1


class DoubleResidual(Right, bug="double residual", probe=6):
    def added(self, x_RKD: Tensor, delta_RKD: Tensor, gate_RK1: Tensor) -> Tensor:
        return gate_RK1 * (x_RKD + delta_RKD)


mutant("scaled stream", 6, added=lambda self, x, delta, gate: gate * (x + delta) - x)
mutant("top-k at evaluation", 1, selected=lambda self, scores, hints, c: self.highest(scores, c))


class DecodeAlways(Right, bug="decode always", probe=3):
    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        return (hints_BT >= 0.3) | alone(hints_BT, context)


mutant("decode never", 3, likely=lambda self, hints, c: (hints >= 0.3) & (not alone(hints, c)))


class CacheMismatch(Right, bug="cache mismatch", probe=3):
    """With a cache, skipped tokens leave keys, too."""

    def processed(self, x_BTD, selected_BT, counts, scores_BT, context):
        if context.cache is None:
            return super().processed(x_BTD, selected_BT, counts, scores_BT, context)
        return MaskedButComputed.processed(self, x_BTD, selected_BT, counts, scores_BT, context)


class OneTooFew(Right, bug="k - 1", probe=4):
    """Selects the scores above the k-th highest."""

    def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
        right_BT = super().highest(scores_BT, context)
        lowest_B1 = scores_BT.masked_fill(~right_BT, torch.inf).amin(1, keepdim=True)
        return right_BT & (scores_BT > lowest_B1)


mutant(
    "targets of sample 0 only",
    8,
    errors=lambda self, hints, targets: Right.errors(self, hints, targets[:1].expand_as(hints)),
)
mutant(
    "loss of sample 0 only",
    8,
    errors=lambda self, hints, targets: Right.errors(self, hints[:1], targets[:1]),
)
mutant(
    "positions 0..k-1",
    7,
    delta=lambda self, inner, _: self.block.delta(
        inner.x_RKD, replace(inner.context, positions_BT=None)
    ),
)


class OrderLost(Right, bug="order lost", probe=7):
    """Sorts the selected tokens by score, in training and scoring only."""

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        context = inner.context
        if context.cache is not None or context.lengths_B is not None:
            return super().delta(inner, scores_RK)
        order_RK = scores_RK.argsort(dim=1, descending=True)
        index_RKD = order_RK[..., None].expand_as(inner.x_RKD)
        context = replace(context, positions_BT=context.positions_BT.gather(1, order_RK))
        delta_RKD = self.block.delta(inner.x_RKD.gather(1, index_RKD), context)
        return torch.zeros_like(delta_RKD).scatter(1, index_RKD, delta_RKD)


mutant("softmax over the selected", 8, gate=lambda self, scores_RK: scores_RK.softmax(dim=1))


class MaskedButComputed(Right, bug="masked but computed", probe=11):
    """Computes all tokens and discards those not selected, and its ledger counts that."""

    def processed(self, x_BTD, selected_BT, counts, scores_BT, context):
        added_BTD = self.gate(scores_BT)[..., None] * self.block.delta(x_BTD, context)
        return torch.where(selected_BT[..., None], x_BTD + added_BTD, x_BTD)

    def ledger(self, workload: Workload) -> Ledger:
        return super().ledger(replace(workload, counts={(self.layer, "depth"): workload.lengths}))


class ScheduleOutsideStateDict(Right, bug="schedule outside state_dict", probe=10):
    """The capacity falls from 1 over ten steps, counted in an attribute."""

    steps = 0

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        self.steps += self.training
        return super().selected(scores_BT, hints_BT, context)

    def capacity_tokens(self, tokens: int) -> int:
        return capacity_tokens(max(self.options.capacity, 1 - self.steps / 10), tokens)


mutant(  # top-k over the padded sequence, padding included
    "padding selected",
    4,
    highest=lambda self, scores, c: highest(
        scores.detach(), [self.capacity_tokens(n) for n in c.lengths(scores)], None
    ),
)
mutant(  # the causal rule compares a token with the first token of all sequences
    "pool across sequences at evaluation", 2, likely=lambda self, hints, c: hints >= hints[:, :1].mean()
)
mutant(
    "ledger off by one matmul",
    9,
    ledger=lambda self, workload: without(Right.ledger(self, workload), "router"),
)


class LedgerOfPrefillForgets(Right, bug="ledger of prefill forgets", probe=9):
    def ledger(self, workload: Workload) -> Ledger:
        right = super().ledger(workload)
        return without(right, "predictor") if workload.phase == "prefill" else right


class LedgerOfDecodeForgets(Right, bug="ledger of decode forgets", probe=9):
    def ledger(self, workload: Workload) -> Ledger:
        right = super().ledger(workload)
        return without(right, "router") if workload.phase == "decode" else right


class LedgerForgetsThePast(Right, bug="ledger forgets the past", probe=9):
    """Counts a chunk as if nothing were cached."""

    def ledger(self, workload: Workload) -> Ledger:
        if workload.phase == "decode" or not any(workload.past):
            return super().ledger(workload)
        counts = {key: value for key, value in workload.counts.items() if key[1] != "past"}
        return super().ledger(replace(workload, past=(), counts=counts))


class LedgerUnderstatesRealised(Right, bug="ledger understates realised", probe=9):
    """Counts half of what the causal rule selects, without padding."""

    def ledger(self, workload: Workload) -> Ledger:
        key = (self.layer, "depth")
        entered = workload.counts.get(key, ())
        if workload.padding or not entered or entered == self.nominal_counts(workload)[key]:
            return super().ledger(workload)
        halved = {key: tuple(number // 2 for number in entered)}
        return super().ledger(replace(workload, counts={**workload.counts, **halved}))


class LedgerUnderstatesBatches(Right, bug="ledger understates batches", probe=9):
    """The same, in batches of different lengths only."""

    def ledger(self, workload: Workload) -> Ledger:
        if workload.padding or len(set(workload.lengths)) == 1 or workload.phase == "train":
            return super().ledger(workload)
        counts = workload.counts.get((self.layer, "depth"), ())
        fewer = {(self.layer, "depth"): tuple(number * 3 // 4 for number in counts)}
        return super().ledger(replace(workload, counts={**workload.counts, **fewer}))


class LedgerOverstatesRealised(Right, bug="ledger overstates realised", probe=9):
    """Counts training on sequences of different lengths twice."""

    def ledger(self, workload: Workload) -> Ledger:
        right = super().ledger(workload)
        if workload.padding or len(set(workload.lengths)) == 1 or workload.phase != "train":
            return right
        return right + right


class LedgerForgetsNominal(Right, bug="ledger forgets nominal", probe=9):
    def ledger(self, workload: Workload) -> Ledger:
        right = super().ledger(workload)
        return right if (self.layer, "depth") in workload.counts else without(right, "predictor")


class PeeksInDetail(Right, bug="peeks in detail", probe=1):
    """Adds the next token where the trace is detailed, as for held-out text."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        return y_BTD + x_BTD.roll(-1, 1) if context.trace.detailed else y_BTD


class LeakAtOnePlace(Right, bug="leak at place 37", probe=1):
    """Token 37 is selected by the prediction for token 38."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        right_BT = super().likely(hints_BT, context)
        if context.cache is None and hints_BT.shape[1] > 38:
            right_BT[:, 37] = hints_BT[:, 38] >= 0.3
        return right_BT


mutant(  # with a cache
    "decode selects all from 100",
    3,
    likely=lambda self, hints, c: (hints >= 0.3) | ((c.positions(hints) >= 100) & (c.cache is not None)),
)


mutant(  # always selects the decoded token of a single sequence
    "decode differs alone",
    3,
    likely=lambda self, hints, c: (hints >= 0.3) | (alone(hints, c) and len(hints) == 1),
)


mutant(
    "selects all of a chunk",
    3,
    likely=lambda self, hints, c: (hints >= 0.3) | (any(c.past) and hints.shape[1] > 1),
)


class PromptScaled(Right, bug="prompt scaled", probe=3):
    """Scales the update of a prompt by 1.001; what it caches is right."""

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        cache = inner.context.cache
        prompt = cache is not None and not any(cache.read)
        return super().delta(inner, scores_RK) * (1.001 if prompt else 1)


class DriftsAtEvaluation(Right, bug="drifts at evaluation", probe=10):
    """A buffer is updated by scoring, too."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.register_buffer("average", torch.zeros(()))

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        if not context.trace.repeated:
            self.average += 1e-12
        return super().selected(scores_BT, hints_BT, context)


class ScoringIsCounted(Right, bug="scoring is counted", probe=10):
    """The gate grows with the number of scored texts."""

    scored = 0

    def gate(self, scores_RK: Tensor) -> Tensor:
        self.scored += not self.training
        return super().gate(scores_RK) * (1 + self.scored / 100)


class UpdatesAgainWhenRepeated(DriftsAtEvaluation, bug="updates again when repeated", probe=10):
    """The buffer is updated again when activation checkpointing repeats the layer."""

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        self.average += self.training
        return Right.selected(self, scores_BT, hints_BT, context)


class ScheduleInTheClass(Right, bug="schedule in the class", probe=10):
    """The gate of every second training step is doubled; steps are counted in the class."""

    steps = 0

    def gate(self, scores_RK: Tensor) -> Tensor:
        type(self).steps += self.training
        return super().gate(scores_RK) * (1 + self.steps % 2)


mutant("loss of padding", 8, mean=lambda self, errors_BT, context: errors_BT.mean())


class ShowsOthers(Right, bug="shows others", probe=5):
    """Shows the neighbours of the selected tokens."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        out_BTD = super().forward(x_BTD, context)
        shown_BT = context.trace.tensors.get((self.layer, "selected"))
        if shown_BT is not None:
            context.trace.show(self.layer, "selected", shown_BT.roll(1, 1))
        return out_BTD


class CountsTwice(Right, bug="counts twice", probe=4):
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        out_BTD = super().forward(x_BTD, context)
        counts = context.trace.counts.get((self.layer, "depth"), ())
        context.trace.count(self.layer, "depth", [2 * number for number in counts])
        return out_BTD


class TiesGoToTheLatest(Right, bug="ties go to the latest", probe=4):
    def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
        counts = [self.capacity_tokens(n) for n in context.lengths(scores_BT)]
        real_BT = context.real(scores_BT)
        flipped_BT = None if real_BT is None else real_BT.flip(1)
        return highest(scores_BT.detach().flip(1), counts, flipped_BT).flip(1)


mutant("causal never", 4, likely=lambda self, hints, c: torch.zeros_like(hints, dtype=torch.bool))


mutant("causal always", 4, likely=lambda self, hints, c: torch.ones_like(hints, dtype=torch.bool))


class NaNWhereOneIsSelected(Right, bug="NaN where one is selected", probe=2):
    """Divides by the number of selected tokens less one, in training."""

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        right_RKD = super().delta(inner, scores_RK)
        if inner.context.selection == "causal":
            return right_RKD
        return right_RKD + 0 * right_RKD.detach() / (right_RKD.shape[1] - 1)


class WritesIntoItsInput(Right, bug="writes into its input", probe=5):
    """Halves skipped tokens, in place without gradients."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        skipped_BT = ~context.trace.tensors[self.layer, "selected"]
        if torch.is_grad_enabled():
            return y_BTD
        return x_BTD.copy_(torch.where(skipped_BT[..., None], y_BTD / 2, y_BTD))


class DoubleResidualInPlace(DoubleResidual, bug="double residual in place", probe=6):
    """In place without gradients."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        return y_BTD if torch.is_grad_enabled() else x_BTD.copy_(y_BTD)


class ForgetsThePrompt(Right, bug="forgets the prompt", probe=3):
    """Where only the last logits of a prompt are asked for, selects no other token of it."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        right_BT = super().likely(hints_BT, context)
        if context.logits != "last":
            return right_BT
        last_B1 = torch.tensor(context.lengths(hints_BT))[:, None] - 1
        return right_BT & (torch.arange(hints_BT.shape[1]) >= last_B1)


class ForgetsAnUnpaddedPrompt(ForgetsThePrompt, bug="forgets an unpadded prompt", probe=3):
    """The same, where prompts are equally long."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        if context.lengths_B is not None:
            return Right.likely(self, hints_BT, context)
        return super().likely(hints_BT, context)


class AboveTheMean(Right, bug="state of decoding on the module", probe=3):
    """Selects tokens whose prediction is above the mean of the predictions up to theirs. The sum is kept
    on the module between cached passes."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.sums: MutableMapping[Cache | None, Tensor] = {}

    def key(self, cache: Cache) -> Cache | None:
        return None

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        real_BT, cache = context.real(hints_BT), context.cache
        sum_BT = (hints_BT if real_BT is None else hints_BT * real_BT).detach().cumsum(1)
        if cache is not None:
            if any(context.past):
                sum_BT = sum_BT + self.sums[self.key(cache)]
            self.sums[self.key(cache)] = sum_BT[:, -1:]
        return hints_BT >= sum_BT / (context.positions(hints_BT) + 1)


class AboveTheMeanByCache(AboveTheMean, bug="state of decoding not rewound", probe=3):
    """The same; each cache has its own sum, which is not rewound."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.sums = WeakKeyDictionary()

    def key(self, cache: Cache) -> Cache | None:
        return cache


mutant(
    "drawn without the seed",
    10,
    initialise=lambda self, seed: Right.initialise(self, random.getrandbits(32)),
)


class AttentionOfItsOwn(Right, bug="attention of its own", probe=10):
    """Initialises its attention from another seed."""

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        right = self.block.attention.initialise
        self.block.attention.initialise = lambda seed: right(seed + 1)


mutant(
    "half of the parameters active",
    9,
    active_parameters=lambda self: Layer.active_parameters(self) // 2,
)


class LedgerOfUngroupedHeads(Right, bug="ledger of ungrouped heads", probe=9):
    """Counts as many key/value heads as heads."""

    def ledger(self, workload: Workload) -> Ledger:
        own, ungrouped = self.block, replace(self.model, kv_heads=self.model.heads)
        with torch.device("meta"):
            self.block = Block(ungrouped, self.layer)
        try:
            return super().ledger(workload)
        finally:
            self.block = own


def model_of(layer: Any, layers: int = 2) -> Decoder:
    """A model with ``layer``, a mutant or the class of an MLP, in every second place."""

    @dataclass(frozen=True, kw_only=True)
    class Case(Depth):
        def build_layer(self, model: ModelConfig, number: int) -> Layer:
            if not number % 2:
                return Block(model, number)
            if issubclass(layer, FeedForward):
                return Block(model, number, layer(model, number))
            return layer(self, model, number)  # type: ignore[no-any-return]

    return build_model(replace(SHAPE, layers=layers), Case(), seed=4)


def learning(layer: Any, layers: int = 2) -> Outcome:
    """Outcome of probe 8."""
    subject = Subject(model_of(layer, layers))
    return gradient(subject, subject.tokens(3, 63))


def probed(router: Router, probe: int, seed: int = 0) -> Finding:
    """The finding of ``probe`` on ``router`` after a training step."""
    model = build_model(SHAPE, router, seed)
    take_step(model, torch.arange(36).reshape(2, 18))
    (finding,) = findings(model.eval(), only={probe}, seed=seed)
    return finding
