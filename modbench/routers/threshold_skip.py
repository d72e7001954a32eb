"""Layer skipping by a learned threshold: D-LLM (Jiang et al. 2024, NeurIPS). Before a block, each token
decides by itself whether to enter it or to pass it by (equations 7 and 10); one that passes leaves no
key behind, and those that enter attend to each other only (13). No token is compared with another, so
training and inference decide alike, causally.

The decision is hard forward, p >= 1/2 with p = sigmoid(r), and soft backward, a straight-through
estimator (8 and 9): ``gate = "straight_through"``; ``"sigmoid"`` weights what the block adds by p
instead. A loss on how many enter keeps to the budget (11, 12 and 14). Here it is penalty * (share that
entered - target)^2 for each block, as in SkipLayer (Zeng et al. 2023, arXiv 2311.15436); D-LLM takes the
absolute difference of each token's share of all blocks.

Where else this reads D-LLM differently: r = w^T x + b on the stream at unit scale, not an MLP with two
outputs; no Gumbel noise; what is skipped is not computed in training either, so that a token which
passes by teaches the router through the budget alone; every n-th block is routed, not all but the first
two; no first tokens that always enter. b starts where the target's share enters if w^T x is N(0, 1).

Sequences differ in how many of their tokens enter. Those that send equally many go through the block
together, so that nothing is computed for padding.

B sequences, T tokens, K that enter, R sequences that send any, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer, trains
from modbench.routing.force_balance import even_tokens
from modbench.routing.gathered_tokens import GatheredTokens, group_equal_sizes
from modbench.routing.option_checks import check_types
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, Router
from modbench.routing.topk import capacity_tokens, score, selected_of_each


@register_router("threshold_skip")
@dataclass(frozen=True, kw_only=True)
class ThresholdSkip(Router):
    """Every n-th block is entered by the tokens that score high enough."""

    presets: ClassVar[Presets] = {
        "every_block": {"every": 1},
        "eighth": {"target": 0.125},
    }

    target: float = 0.5  #: share of the tokens that are to enter a routed block
    penalty: float = 1.0  #: weight of the squared distance from it
    every: int = 2  #: route every n-th block, the others run for all
    gate: Literal["straight_through", "sigmoid"] = "straight_through"

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.target <= 1:
            raise UserError(f"target is {self.target:g}; it must lie in (0, 1]")
        if self.penalty <= 0:
            raise UserError(f"penalty is {self.penalty:g}; it must be above 0")
        if self.every < 1:
            raise UserError(f"every is {self.every}; it must be 1 or more")

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        if model.layers < self.every:
            raise UserError(
                f"no block of {model.layers} is routed with every {self.every}; set every to "
                f"{model.layers} or less, or layers to {self.every} or more"
            )
        block = Block(model, layer)
        routed = layer % self.every == self.every - 1
        return SkippableBlock(self, model, layer, block) if routed else block


class SkippableBlock(Layer):
    """A block that each token enters or passes by."""

    has_data_dependent_shapes = True

    def __init__(self, options: ThresholdSkip, model: ModelConfig, layer: int, block: Block) -> None:
        super().__init__()
        self.options, self.model, self.layer, self.block = options, model, layer, block
        self.router = nn.Parameter(torch.empty(1, model.width))
        self.bias = nn.Parameter(torch.empty(1))

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"layers.{self.layer}.depth_router")
        nn.init.constant_(self.bias, NormalDist().inv_cdf(min(self.options.target, 1 - 1e-4)))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        wide_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        with component("router", self.layer):
            scores_BT1 = score(F.rms_norm(wide_BTD, x_BTD.shape[-1:]), self.router)
        scores_BT = (scores_BT1 + self.bias.to(scores_BT1.dtype)).squeeze(-1)
        probability_BT = scores_BT.sigmoid()
        entering_BT = scores_BT >= 0  # p >= 1/2
        entering_BT = even_tokens(entering_BT, context, self.options.target)
        real_BT = context.real(x_BTD)
        if real_BT is not None:
            entering_BT = entering_BT & real_BT
        nominal, _ = incremental_counts(self._share, context.lengths(x_BTD), context.before(x_BTD))
        lengths = selected_of_each(entering_BT, nominal)
        context.trace.show(self.layer, "selected", entering_BT)
        context.trace.show(self.layer, "gate", probability_BT)
        context.trace.count(self.layer, "depth", lengths)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        if context.selection == "topk":
            self._budget(probability_BT, entering_BT, context)
        out_BTD = x_BTD
        for some in group_equal_sizes(lengths):
            entering = GatheredTokens(x_BTD, entering_BT, some, context, layer=self.layer)
            delta_RKD = self.block.delta(entering.x_RKD, entering.context)
            gate_RK = entering.gather(probability_BT)
            if self.options.gate == "straight_through":
                gate_RK = 1 + (gate_RK - gate_RK.detach())  # exactly 1
            out_BTD = entering.add_to(out_BTD, delta_RKD * gate_RK[..., None])
        return out_BTD

    def ledger(self, workload: Workload) -> Ledger:
        lengths, past = self._entering(workload)
        router = matmul(
            workload,
            self.layer,
            "router",
            rows=workload.slots,
            inner=self.model.width,
            columns=1,
            weight_gradient=self.router.requires_grad,
        )
        blocks = [self.block.ledger(workload.routed(some, past)) for some in group_equal_sizes(lengths)]
        return Ledger.sum([router, *blocks])

    def takes_gradient(self, workload: Workload) -> bool:
        return any(self._entering(workload)[0]) and trains(self)

    def active_parameters(self) -> int:
        return self.router.numel() + self.bias.numel() + self.block.active_parameters()

    def _entering(self, workload: Workload) -> tuple[Sequence[int], Sequence[int]]:
        """New and earlier tokens of each sequence that enter."""
        new, past = incremental_counts(self._share, workload.lengths, workload.past)
        lengths = workload.counts.get((self.layer, "depth"), new)
        return lengths, workload.counts.get((self.layer, "past"), past)

    def _share(self, tokens: int) -> int:
        return capacity_tokens(self.options.target, tokens)

    def _budget(self, probability_BT: Tensor, entering_BT: Tensor, context: Context) -> None:
        """The loss on the share that entered: its value is the hard share's, its gradient p's."""
        tokens = sum(context.lengths(probability_BT))
        real_BT = context.real(probability_BT)
        if real_BT is not None:
            probability_BT = probability_BT.masked_fill(~real_BT, 0.0)
        soft = probability_BT.sum() / tokens
        hard = entering_BT.sum().to(soft.dtype) / tokens
        entered = hard + (soft - soft.detach())
        loss = self.options.penalty * (entered - self.options.target).square()
        context.trace.loss(self.layer, "budget", loss)
