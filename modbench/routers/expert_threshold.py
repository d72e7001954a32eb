"""Expert Threshold routing (Sun et al. 2026, arXiv 2603.11535, section 3): expert choice over a batch
without end. Each expert keeps a threshold c, an exponential average of the k-th highest of a batch's
scores, k = tokens * capacity / experts, and takes every token whose score is at or above its own; in
training and at inference alike. No token is compared with another, so nothing leaks; how many experts a
token meets varies, and loads are even in expectation, without a balance loss.

As in the authors' code, thresholds stand in the space of the router's logits r, the gate is sigmoid(r),
not renormalised, and the average decays by 0.99.

Where this reads it differently: thresholds hold from the first step on, without thousands of steps of
expert choice (which leak) before; they start at the quantile of N(0, 1), which is how logits are first
spread. They move after every training forward pass. k is rounded up. No shared expert, so that active
FLOPs are those of the dense MLP.

B sequences, T tokens, S slots, padding included, D model width, E experts, K the k-th highest, N rows in
all, sorted by expert.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.ema import EMA
from modbench.routing.expert_bank import ExpertBank, dispatched, expert_width
from modbench.routing.force_balance import even_pool
from modbench.routing.option_checks import check_types
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, Router
from modbench.routing.topk import capacity_tokens, counts_to_host, evenly, score


@register_router("expert_threshold")
@dataclass(frozen=True, kw_only=True)
class ExpertThreshold(Router):
    """Every block's MLP is a bank of experts that take the tokens at or above their thresholds."""

    presets: ClassVar[Presets] = {
        "one_expert": {"capacity": 1.0},
        "fine_grained": {"experts": 64, "capacity": 8.0},
    }

    experts: int = 8
    capacity: float = 2.0  #: experts per token on average
    expert_width: int | None = None  #: None: the dense MLP's width / capacity, for equal active FLOPs
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    threshold_decay: float = 0.99  #: of the exponential average

    def __post_init__(self) -> None:
        check_types(self)
        if self.experts < 1:
            raise UserError(f"experts is {self.experts}; it must be 1 or more")
        if not 0 < self.capacity <= self.experts:
            raise UserError(
                f"capacity is {self.capacity:g} with {self.experts} experts; it must lie above 0 and "
                "be no more than experts"
            )
        if self.expert_width is not None and self.expert_width < 1:
            raise UserError(f"expert_width is {self.expert_width}; it must be 1 or more")
        if not 0 <= self.threshold_decay < 1:
            raise UserError(f"threshold_decay is {self.threshold_decay}; it must lie in [0, 1)")

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer, ThresholdExperts(self, model, layer))


class ThresholdExperts(FeedForward):
    """Experts that take what reaches their thresholds."""

    has_data_dependent_shapes = True

    def __init__(self, options: ExpertThreshold, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.options, self.model, self.layer = options, model, layer
        width = expert_width(model, options.expert_width, options.capacity)
        self.bank = ExpertBank(model, layer, experts=options.experts, width=width)
        self.router = nn.Parameter(torch.empty(options.experts, model.width))
        # Where every expert takes every token, a quantile that is finite.
        above = min(options.capacity / options.experts, 1 - 1e-4)
        start_E = torch.full((options.experts,), NormalDist().inv_cdf(1 - above))
        self.threshold = EMA(start_E, options.threshold_decay)

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"layers.{self.layer}.router")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", self.layer):
            logits_SE = score(x_BTD, self.router).flatten(0, 1)
        threshold_E = self._threshold(context).to(logits_SE.dtype)
        chosen_BTE = (logits_SE >= threshold_E).view(*x_BTD.shape[:2], -1)
        options = self.options
        chosen_BTE = even_pool(chosen_BTE, context, options.capacity, among=options.experts)
        chosen_SE = chosen_BTE.flatten(0, 1)
        real_BT = context.real(x_BTD)
        if real_BT is not None:
            chosen_SE = chosen_SE & real_BT.flatten()[:, None]
        sigmoid = self.options.gate == "sigmoid"
        gates_SE = logits_SE.sigmoid() if sigmoid else logits_SE.softmax(dim=-1)
        lengths, before = context.lengths(x_BTD), context.before(x_BTD)
        nominal = self._nominal(sum(lengths), sum(before))
        counts = counts_to_host(chosen_SE.sum(0), evenly(nominal, self.options.experts))
        out_BTD = dispatched(self.bank, x_BTD, gates_SE, chosen_SE, counts)
        context.trace.show(self.layer, "load", chosen_SE.sum(0))
        context.trace.show(self.layer, "taken", chosen_SE.sum(1))
        real_S = None if real_BT is None else real_BT.flatten()
        context.trace.show_choice(self.layer, gates_SE, chosen_SE, real_S, gates_SE)
        context.trace.count(self.layer, "experts", [sum(counts)])
        if self.training and context.selection == "topk" and not context.trace.repeated:
            self._move(logits_SE.detach(), real_BT, sum(lengths))
        return out_BTD

    def ledger(self, workload: Workload) -> Ledger:
        router = matmul(
            workload,
            self.layer,
            "router",
            rows=workload.slots,
            inner=self.model.width,
            columns=self.options.experts,
            weight_gradient=self.router.requires_grad,
        )
        nominal = self._nominal(workload.tokens, sum(workload.past))
        (assignments,) = workload.counts.get((self.layer, "experts"), (nominal,))
        return router + self.bank.ledger(workload, assignments)

    def active_parameters(self) -> int:
        # A token meets `capacity` experts on average.
        return self.router.numel() + self.bank.parameters_of(self.options.capacity)

    def _nominal(self, tokens: int, past: int) -> int:
        """Assignments of ``tokens`` new tokens of a batch, where the thresholds are right."""
        (new,), _ = incremental_counts(self._taken, [tokens], [past])
        return new * self.options.experts

    def _taken(self, tokens: int) -> int:
        return capacity_tokens(self.options.capacity, tokens, among=self.options.experts)

    def _threshold(self, context: Context) -> Tensor:
        """The thresholds (E,) of this forward pass: run again, it must choose as it did, though they
        have moved in between."""
        if not context.trace.repeated:
            context.trace.show(self.layer, "threshold", self.threshold.value.clone())
        return context.trace.tensors[self.layer, "threshold"]

    def _move(self, logits_SE: Tensor, real_BT: Tensor | None, tokens: int) -> None:
        if real_BT is not None:
            logits_SE = logits_SE.masked_fill(~real_BT.flatten()[:, None], -torch.inf)
        highest_KE = logits_SE.topk(self._taken(tokens), dim=0).values
        self.threshold.update(highest_KE[-1])
