"""Mutants of `Right` that are wrong at one position, in one phase or in one mode only.

Each overrides one method and is named after its bug. ``MUTANTS`` of this file holds all mutants.

B sequences, T tokens, D model width; R sequences with selected tokens, K the most of one sequence.
"""

import random
from collections.abc import MutableMapping
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from mutants import MUTANTS as COARSE
from mutants import Depth, DoubleResidual, Right
from torch import Tensor

from modbench.ledger import Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.routing.topk import highest


def without(ledger: Ledger, component: str) -> Ledger:
    return Ledger({key: flops for key, flops in ledger if key[1] != component})


class LedgerOfPrefillForgets(Right):
    def ledger(self, workload: Workload) -> Ledger:
        right = super().ledger(workload)
        return without(right, "predictor") if workload.phase == "prefill" else right


class LedgerOfDecodeForgets(Right):
    def ledger(self, workload: Workload) -> Ledger:
        right = super().ledger(workload)
        return without(right, "router") if workload.phase == "decode" else right


class LedgerForgetsThePast(Right):
    """Counts a chunk as if nothing were cached."""

    def ledger(self, workload: Workload) -> Ledger:
        if workload.phase == "decode" or not any(workload.past):
            return super().ledger(workload)
        counts = {key: value for key, value in workload.counts.items() if key[1] != "past"}
        return super().ledger(replace(workload, past=(), counts=counts))


class LedgerUnderstatesRealised(Right):
    """Counts half of what the causal rule selects, without padding."""

    def ledger(self, workload: Workload) -> Ledger:
        key = (self.layer, "depth")
        entered = workload.counts.get(key, ())
        if workload.padding or not entered or entered == self.nominal_counts(workload)[key]:
            return super().ledger(workload)
        halved = {key: tuple(number // 2 for number in entered)}
        return super().ledger(replace(workload, counts={**workload.counts, **halved}))


class LedgerUnderstatesBatches(Right):
    """The same, in batches of different lengths only."""

    def ledger(self, workload: Workload) -> Ledger:
        if workload.padding or len(set(workload.lengths)) == 1 or workload.phase == "train":
            return super().ledger(workload)
        counts = workload.counts.get((self.layer, "depth"), ())
        fewer = {(self.layer, "depth"): tuple(number * 3 // 4 for number in counts)}
        return super().ledger(replace(workload, counts={**workload.counts, **fewer}))


class LedgerOverstatesRealised(Right):
    """Counts training on sequences of different lengths twice."""

    def ledger(self, workload: Workload) -> Ledger:
        right = super().ledger(workload)
        if workload.padding or len(set(workload.lengths)) == 1 or workload.phase != "train":
            return right
        return right + right


class LedgerForgetsNominal(Right):
    def ledger(self, workload: Workload) -> Ledger:
        right = super().ledger(workload)
        return right if (self.layer, "depth") in workload.counts else without(right, "predictor")


class PeeksInDetail(Right):
    """Adds the next token where the trace is detailed, as for held-out text."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        return y_BTD + x_BTD.roll(-1, 1) if context.trace.detailed else y_BTD


class LeakAtOnePlace(Right):
    """Token 37 is selected by the prediction for token 38."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        right_BT = super().likely(hints_BT, context)
        if context.cache is None and hints_BT.shape[1] > 38:
            right_BT[:, 37] = hints_BT[:, 38] >= 0.3
        return right_BT


class DecodeSelectsAllFrom100(Right):
    """With a cache, selects all tokens from position 100 on."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        late_BT = context.positions(hints_BT) >= 100
        return super().likely(hints_BT, context) | (late_BT & (context.cache is not None))


class DecodeDiffersAlone(Right):
    """Always selects the decoded token of a single sequence."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        alone = context.cache is not None and hints_BT.shape == (1, 1)
        return super().likely(hints_BT, context) | alone


class SelectsAllOfAChunk(Right):
    """Selects all tokens of a chunk."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        chunk = any(context.past) and hints_BT.shape[1] > 1
        return super().likely(hints_BT, context) | chunk


class PromptScaled(Right):
    """Scales the update of a prompt by 1.001; what it caches is right."""

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        cache = inner.context.cache
        prompt = cache is not None and not any(cache.read)
        return super().delta(inner, scores_RK) * (1.001 if prompt else 1)


class DriftsAtEvaluation(Right):
    """A buffer is updated by scoring, too."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.register_buffer("average", torch.zeros(()))

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        if not context.trace.repeated:
            self.average += 1e-12
        return super().selected(scores_BT, hints_BT, context)


class ScoringIsCounted(Right):
    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        self.scored = 0

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        self.scored += not self.training
        return super().forward(x_BTD, context)


class UpdatesAgainWhenRepeated(DriftsAtEvaluation):
    """The buffer is updated again when activation checkpointing repeats the layer."""

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        self.average += self.training
        return Right.selected(self, scores_BT, hints_BT, context)


class ScheduleInTheClass(Right):
    steps = 0

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        type(self).steps += self.training
        return super().selected(scores_BT, hints_BT, context)


class LossOfPadding(Right):
    def mean(self, errors_BT: Tensor, context: Context) -> Tensor:
        return errors_BT.mean()


class ShowsOthers(Right):
    """Shows the neighbours of the selected tokens."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        out_BTD = super().forward(x_BTD, context)
        shown_BT = context.trace.tensors.get((self.layer, "selected"))
        if shown_BT is not None:
            context.trace.show(self.layer, "selected", shown_BT.roll(1, 1))
        return out_BTD


class CountsTwice(Right):
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        out_BTD = super().forward(x_BTD, context)
        counts = context.trace.counts.get((self.layer, "depth"), ())
        context.trace.count(self.layer, "depth", [2 * number for number in counts])
        return out_BTD


class TiesGoToTheLatest(Right):
    def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
        counts = [self.capacity_tokens(n) for n in context.lengths(scores_BT)]
        real_BT = context.real(scores_BT)
        flipped_BT = None if real_BT is None else real_BT.flip(1)
        return highest(scores_BT.detach().flip(1), counts, flipped_BT).flip(1)


class CausalNever(Right):
    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        return torch.zeros_like(hints_BT, dtype=torch.bool)


class CausalAlways(Right):
    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        return torch.ones_like(hints_BT, dtype=torch.bool)


class NaNWhereOneIsSelected(Right):
    """Divides by the number of selected tokens less one, in training."""

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        right_RKD = super().delta(inner, scores_RK)
        if inner.context.selection == "causal":
            return right_RKD
        return right_RKD + 0 * right_RKD.detach() / (right_RKD.shape[1] - 1)


class WritesIntoItsInput(Right):
    """Halves skipped tokens, in place without gradients."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        skipped_BT = ~context.trace.tensors[self.layer, "selected"]
        if torch.is_grad_enabled():
            return y_BTD
        return x_BTD.copy_(torch.where(skipped_BT[..., None], y_BTD / 2, y_BTD))


class DoubleResidualInPlace(DoubleResidual):
    """In place without gradients."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        return y_BTD if torch.is_grad_enabled() else x_BTD.copy_(y_BTD)


class ForgetsThePrompt(Right):
    """Where only the last logits of a prompt are asked for, selects no other token of it."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        right_BT = super().likely(hints_BT, context)
        if context.logits != "last":
            return right_BT
        last_B1 = torch.tensor(context.lengths(hints_BT))[:, None] - 1
        return right_BT & (torch.arange(hints_BT.shape[1]) >= last_B1)


class ForgetsAnUnpaddedPrompt(ForgetsThePrompt):
    """The same, where prompts are equally long."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        if context.lengths_B is not None:
            return Right.likely(self, hints_BT, context)
        return super().likely(hints_BT, context)


class AboveTheMean(Right):
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


class AboveTheMeanByCache(AboveTheMean):
    """The same; each cache has its own sum, which is not rewound."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.sums = WeakKeyDictionary()

    def key(self, cache: Cache) -> Cache | None:
        return cache


class DrawnWithoutSeed(Right):
    def initialise(self, seed: int) -> None:
        super().initialise(random.getrandbits(32))


class AttentionOfItsOwn(Right):
    """Initialises its attention from another seed."""

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        right = self.block.attention.initialise
        self.block.attention.initialise = lambda seed: right(seed + 1)


class HalfActive(Right):
    """Reports half of the block as active."""

    def active_parameters(self) -> int:
        return super().active_parameters() // 2


class LedgerOfUngroupedHeads(Right):
    """Counts as many key/value heads as heads."""

    def ledger(self, workload: Workload) -> Ledger:
        own, ungrouped = self.block, replace(self.model, kv_heads=self.model.heads)
        with torch.device("meta"):
            self.block = Block(ungrouped, self.layer)
        try:
            return super().ledger(workload)
        finally:
            self.block = own


MUTANTS: dict[str, type[Right]] = COARSE
MUTANTS |= {
    "ledger of prefill forgets": LedgerOfPrefillForgets,
    "ledger of decode forgets": LedgerOfDecodeForgets,
    "ledger forgets the past": LedgerForgetsThePast,
    "ledger understates realised": LedgerUnderstatesRealised,
    "ledger understates batches": LedgerUnderstatesBatches,
    "ledger overstates realised": LedgerOverstatesRealised,
    "ledger forgets nominal": LedgerForgetsNominal,
    "peeks in detail": PeeksInDetail,
    "leak at place 37": LeakAtOnePlace,
    "decode selects all from 100": DecodeSelectsAllFrom100,
    "decode differs alone": DecodeDiffersAlone,
    "selects all of a chunk": SelectsAllOfAChunk,
    "prompt scaled": PromptScaled,
    "drifts at evaluation": DriftsAtEvaluation,
    "scoring is counted": ScoringIsCounted,
    "updates again when repeated": UpdatesAgainWhenRepeated,
    "schedule in the class": ScheduleInTheClass,
    "loss of padding": LossOfPadding,
    "shows others": ShowsOthers,
    "counts twice": CountsTwice,
    "ties go to the latest": TiesGoToTheLatest,
    "causal never": CausalNever,
    "causal always": CausalAlways,
    "NaN where one is selected": NaNWhereOneIsSelected,
    "writes into its input": WritesIntoItsInput,
    "double residual in place": DoubleResidualInPlace,
    "forgets the prompt": ForgetsThePrompt,
    "forgets an unpadded prompt": ForgetsAnUnpaddedPrompt,
    "state of decoding on the module": AboveTheMean,
    "state of decoding not rewound": AboveTheMeanByCache,
    "drawn without the seed": DrawnWithoutSeed,
    "attention of its own": AttentionOfItsOwn,
    "half of the parameters active": HalfActive,
    "ledger of ungrouped heads": LedgerOfUngroupedHeads,
}
