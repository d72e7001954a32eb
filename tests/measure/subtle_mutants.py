"""Routers that are wrong at one place, in one phase or at one time only, and right elsewhere.

Each differs from `Right` in the method that it overrides, and is named after its bug. ``MUTANTS`` of
this file are all that there are.

B sequences, T tokens, D model width; R sequences that send any tokens, K the most that one sends.
"""

from dataclasses import replace

import torch
from mutants import MUTANTS as COARSE
from mutants import Depth, DoubleResidual, Right
from torch import Tensor

from modbench.ledger import Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
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
    """As if nothing were cached, several tokens at a time."""

    def ledger(self, workload: Workload) -> Ledger:
        if workload.phase == "decode" or not any(workload.past):
            return super().ledger(workload)
        counts = {key: value for key, value in workload.counts.items() if key[1] != "past"}
        return super().ledger(replace(workload, past=(), counts=counts))


class LedgerUnderstatesRealised(Right):
    """Half of what the causal rule let in, wherever padding isn't asked for."""

    def ledger(self, workload: Workload) -> Ledger:
        key = (self.layer, "depth")
        entered = workload.counts.get(key, ())
        if workload.padding or not entered or entered == self.nominal_counts(workload)[key]:
            return super().ledger(workload)
        halved = {key: tuple(number // 2 for number in entered)}
        return super().ledger(replace(workload, counts={**workload.counts, **halved}))


class LedgerUnderstatesStrangers(Right):
    """The same, in a batch of different lengths alone."""

    def ledger(self, workload: Workload) -> Ledger:
        if workload.padding or len(set(workload.lengths)) == 1 or workload.phase == "train":
            return super().ledger(workload)
        counts = workload.counts.get((self.layer, "depth"), ())
        fewer = {(self.layer, "depth"): tuple(number * 3 // 4 for number in counts)}
        return super().ledger(replace(workload, counts={**workload.counts, **fewer}))


class LedgerOverstatesRealised(Right):
    """Training on sequences of different lengths counts as if all were as long as the longest, twice."""

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
    """At the next token, where held-out text is scored."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        return y_BTD + x_BTD.roll(-1, 1) if context.trace.detailed else y_BTD


class LeakAtOnePlace(Right):
    """Token 37 enters if token 38 is likely to."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        right_BT = super().likely(hints_BT, context)
        if context.cache is None and hints_BT.shape[1] > 38:
            right_BT[:, 37] = hints_BT[:, 38] >= 0.3
        return right_BT


class DecodeTiresAt100(Right):
    """Through the cache all enter from position 100 on."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        late_BT = context.positions(hints_BT) >= 100
        return super().likely(hints_BT, context) | (late_BT & (context.cache is not None))


class DecodeDiffersAlone(Right):
    """The token of a single sequence always enters."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        alone = context.cache is not None and hints_BT.shape == (1, 1)
        return super().likely(hints_BT, context) | alone


class ChunkEntersWhole(Right):
    """Several tokens onto a filled cache all enter."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        chunk = any(context.past) and hints_BT.shape[1] > 1
        return super().likely(hints_BT, context) | chunk


class PromptScaled(Right):
    """What a prompt's tokens get is a thousandth off; what they leave in the cache is right."""

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        cache = inner.context.cache
        prompt = cache is not None and not any(cache.read)
        return super().delta(inner, scores_RK) * (1.001 if prompt else 1)


class DriftsAtEvaluation(Right):
    """A buffer follows what is scored, not only what is trained on."""

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


class MovesAgainWhenRepeated(DriftsAtEvaluation):
    """Activation checkpointing runs the layer again, and the average moves again."""

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        self.average += self.training
        return Right.selected(self, scores_BT, hints_BT, context)


class ScheduleInTheClass(Right):
    steps = 0

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        type(self).steps += self.training
        return super().selected(scores_BT, hints_BT, context)


SCHEDULE = {"steps": 0}


class ScheduleInTheFile(Right):
    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        SCHEDULE["steps"] += self.training
        return super().selected(scores_BT, hints_BT, context)


class PaddingTeaches(Right):
    def mean(self, errors_BT: Tensor, context: Context) -> Tensor:
        return errors_BT.mean()


class ShowsOthers(Right):
    """The trace is shown the neighbours of those that were selected."""

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
        counts = [self.share(n) for n in context.lengths(scores_BT)]
        real_BT = context.real(scores_BT)
        flipped_BT = None if real_BT is None else real_BT.flip(1)
        return highest(scores_BT.detach().flip(1), counts, flipped_BT).flip(1)


class CausalNever(Right):
    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        return torch.zeros_like(hints_BT, dtype=torch.bool)


class CausalAlways(Right):
    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        return torch.ones_like(hints_BT, dtype=torch.bool)


class NoNumberWhereOneEnters(Right):
    """A spread over the selected, of which there must be two; in training."""

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        right_RKD = super().delta(inner, scores_RK)
        if inner.context.selection == "causal":
            return right_RKD
        return right_RKD + 0 * right_RKD.detach() / (right_RKD.shape[1] - 1)


class WritesIntoItsInput(Right):
    """Those that are skipped are halved, in place where no gradient is asked for."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        skipped_BT = ~context.trace.tensors[self.layer, "selected"]
        if torch.is_grad_enabled():
            return y_BTD
        return x_BTD.copy_(torch.where(skipped_BT[..., None], y_BTD / 2, y_BTD))


class DoubleResidualInPlace(DoubleResidual):
    """Where no gradient is asked for."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        return y_BTD if torch.is_grad_enabled() else x_BTD.copy_(y_BTD)


MUTANTS: dict[str, type[Right]] = COARSE
MUTANTS |= {
    "ledger of prefill forgets": LedgerOfPrefillForgets,
    "ledger of decode forgets": LedgerOfDecodeForgets,
    "ledger forgets the past": LedgerForgetsThePast,
    "ledger understates realised": LedgerUnderstatesRealised,
    "ledger understates strangers": LedgerUnderstatesStrangers,
    "ledger overstates realised": LedgerOverstatesRealised,
    "ledger forgets nominal": LedgerForgetsNominal,
    "peeks in detail": PeeksInDetail,
    "leak at place 37": LeakAtOnePlace,
    "decode tires at 100": DecodeTiresAt100,
    "decode differs alone": DecodeDiffersAlone,
    "chunk enters whole": ChunkEntersWhole,
    "prompt scaled": PromptScaled,
    "drifts at evaluation": DriftsAtEvaluation,
    "scoring is counted": ScoringIsCounted,
    "moves again when repeated": MovesAgainWhenRepeated,
    "schedule in the class": ScheduleInTheClass,
    "schedule in the file": ScheduleInTheFile,
    "padding teaches": PaddingTeaches,
    "shows others": ShowsOthers,
    "counts twice": CountsTwice,
    "ties go to the latest": TiesGoToTheLatest,
    "causal never": CausalNever,
    "causal always": CausalAlways,
    "no number where one enters": NoNumberWhereOneEnters,
    "writes into its input": WritesIntoItsInput,
    "double residual in place": DoubleResidualInPlace,
}
