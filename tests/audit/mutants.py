"""A correct depth router, and mutants of it that the audit must catch.

Each mutant overrides one method of `Right` and is named after its bug.

B sequences, T tokens, D model width; R sequences with selected tokens, K the most of one sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.audit.finding import Outcome, Subject
from modbench.audit.learning import gradient
from modbench.ledger import Counts, Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.build import build_model
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.routing.router import Router
from modbench.routing.topk import capacity_tokens, counts_to_host, highest, score


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


class DoubleResidual(Right):
    def added(self, x_RKD: Tensor, delta_RKD: Tensor, gate_RK1: Tensor) -> Tensor:
        return gate_RK1 * (x_RKD + delta_RKD)


class ScaledStream(Right):
    def added(self, x_RKD: Tensor, delta_RKD: Tensor, gate_RK1: Tensor) -> Tensor:
        return gate_RK1 * (x_RKD + delta_RKD) - x_RKD


class TopKAtEvaluation(Right):
    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        return self.highest(scores_BT, context)


class DecodeAlways(Right):
    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        alone = context.cache is not None and hints_BT.shape[1] == 1
        return (hints_BT >= 0.3) | alone


class DecodeNever(Right):
    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        alone = context.cache is not None and hints_BT.shape[1] == 1
        return (hints_BT >= 0.3) & (not alone)


class CacheMismatch(Right):
    """With a cache, skipped tokens leave keys, too."""

    def processed(
        self,
        x_BTD: Tensor,
        selected_BT: Tensor,
        counts: list[int],
        scores_BT: Tensor,
        context: Context,
    ) -> Tensor:
        if context.cache is None:
            return super().processed(x_BTD, selected_BT, counts, scores_BT, context)
        delta_BTD = self.block.delta(x_BTD, context)
        added_BTD = self.added(x_BTD, delta_BTD, self.gate(scores_BT)[..., None])
        return torch.where(selected_BT[..., None], x_BTD + added_BTD, x_BTD)


class OneTooFew(Right):
    """Selects the scores above the k-th highest."""

    def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
        right_BT = super().highest(scores_BT, context)
        lowest_B1 = scores_BT.masked_fill(~right_BT, torch.inf).amin(1, keepdim=True)
        return right_BT & (scores_BT > lowest_B1)


class FirstSampleTargets(Right):
    def errors(self, hints_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return super().errors(hints_BT, targets_BT[:1].expand_as(hints_BT))


class FirstSampleAlone(Right):
    def errors(self, hints_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return super().errors(hints_BT[:1], targets_BT[:1])


class PositionsFromZero(Right):
    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        return self.block.delta(inner.x_RKD, replace(inner.context, positions_BT=None))


class OrderLost(Right):
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


class SoftmaxGate(Right):
    def gate(self, scores_RK: Tensor) -> Tensor:
        return scores_RK.softmax(dim=1)


class MaskedButComputed(Right):
    """Computes all tokens and discards those not selected, and its ledger counts that."""

    def processed(
        self,
        x_BTD: Tensor,
        selected_BT: Tensor,
        counts: list[int],
        scores_BT: Tensor,
        context: Context,
    ) -> Tensor:
        added_BTD = self.gate(scores_BT)[..., None] * self.block.delta(x_BTD, context)
        return torch.where(selected_BT[..., None], x_BTD + added_BTD, x_BTD)

    def ledger(self, workload: Workload) -> Ledger:
        return super().ledger(replace(workload, counts={(self.layer, "depth"): workload.lengths}))


class ScheduleOutsideStateDict(Right):
    """The capacity falls from 1 over ten steps, counted in an attribute."""

    steps = 0

    def selected(self, scores_BT: Tensor, hints_BT: Tensor, context: Context) -> Tensor:
        self.steps += self.training
        return super().selected(scores_BT, hints_BT, context)

    def capacity_tokens(self, tokens: int) -> int:
        return capacity_tokens(max(self.options.capacity, 1 - self.steps / 10), tokens)


class PaddingSelected(Right):
    """Top-k over the padded sequence, padding included."""

    def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
        return highest(
            scores_BT.detach(), [self.capacity_tokens(n) for n in context.lengths(scores_BT)], None
        )


class PoolAcrossSequences(Right):
    """The causal rule compares a token with the first token of all sequences."""

    def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
        return hints_BT >= hints_BT[:, :1].mean()


class LedgerOffByOneMatmul(Right):
    def ledger(self, workload: Workload) -> Ledger:
        return Ledger({key: flops for key, flops in super().ledger(workload) if key[1] != "router"})


#: Layers by name of their bug.
MUTANTS: dict[str, type[Right]] = {
    "right": Right,
    "double residual": DoubleResidual,
    "scaled stream": ScaledStream,
    "top-k at evaluation": TopKAtEvaluation,
    "decode always": DecodeAlways,
    "decode never": DecodeNever,
    "cache mismatch": CacheMismatch,
    "k - 1": OneTooFew,
    "targets of sample 0 only": FirstSampleTargets,
    "loss of sample 0 only": FirstSampleAlone,
    "positions 0..k-1": PositionsFromZero,
    "order lost": OrderLost,
    "softmax over the selected": SoftmaxGate,
    "masked but computed": MaskedButComputed,
    "schedule outside state_dict": ScheduleOutsideStateDict,
    "padding selected": PaddingSelected,
    "pool across sequences at evaluation": PoolAcrossSequences,
    "ledger off by one matmul": LedgerOffByOneMatmul,
}


def learning(
    kind: Callable[[ModelConfig, int], FeedForward], shape: ModelConfig, patch: pytest.MonkeyPatch
) -> Outcome:
    """Outcome of probe 8 for a model of ``shape`` with an MLP of ``kind`` in every second block."""

    def layer(options: Depth, model: ModelConfig, number: int) -> Layer:
        return Block(model, number, kind(model, number))

    patch.setitem(MUTANTS, "case", layer)  # type: ignore[arg-type]
    subject = Subject(build_model(shape, Depth(bug="case"), seed=4))
    return gradient(subject, subject.tokens(3, 63))
