"""Mixture-of-Depths (Raposo et al. 2024): in every n-th block, each sequence's k highest-scoring tokens
go through the block, attention and MLP; the others pass it by.

Equation 1: x' = r * f(X) + x for the selected, x for the rest, with r = w^T x. The f of a pre-norm block
is what it adds to the residual stream (``residual = "delta"``); ``"full"`` takes it as the block's whole
output, x + r * (x + delta). The selected attend to each other only, causally, at their own positions.

Top-k over a sequence looks at later tokens, so it trains and may not predict (section 3.5). Causal
rules: ``predictor``, a small MLP on the detached stream trained by binary cross-entropy to tell who is
among the top k; ``aux_bce``, the same loss on the router's own score, a token entering at score >= 0;
``ema_threshold``, an exponential average of the lowest score that was selected.

Where this reads the paper differently: k is rounded up; ``scaled_sigmoid`` is 2 * sigmoid(r), 1 at 0.

B sequences, T tokens, K selected, D model width.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.flops.component import component
from modbench.flops.ledger import Ledger, Load, matmul, stretch
from modbench.model.average import RunningAverage
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.initial import normal_
from modbench.model.registry import register_router
from modbench.model.router import Layer, Presets, Router
from modbench.model.scores import highest, known, score, share
from modbench.model.selected import Selected


@dataclass(frozen=True, kw_only=True)
class DepthOptions(Router):
    """The options of every scheme in which a sequence's tokens are selected for a block."""

    capacity: float = 0.125  #: share of a sequence's tokens that enter a routed block
    every: int = 2  #: route every n-th block, the others run for all
    gate: Literal["linear", "sigmoid", "scaled_sigmoid"] = "linear"
    residual: Literal["delta", "full"] = "delta"
    causal: Literal["predictor", "aux_bce", "ema_threshold"] = "predictor"
    auxiliary: float = 0.01  #: weight of the causal rule's cross-entropy
    threshold_decay: float = 0.95  #: of the exponential average behind ``ema_threshold``

    def __post_init__(self) -> None:
        if not 0 < self.capacity <= 1:
            raise UserError(f"capacity is {self.capacity:g}; it must lie in (0, 1]")
        if self.every < 1:
            raise UserError(f"every is {self.every}; it must be 1 or more")
        if self.auxiliary <= 0:
            raise UserError(f"auxiliary is {self.auxiliary}; it must be above 0")
        if not 0 <= self.threshold_decay < 1:
            raise UserError(f"threshold_decay is {self.threshold_decay}; it must lie in [0, 1)")

    def routes(self, layer: int) -> bool:
        """Whether the block at depth ``layer`` is routed: the last of each group of ``every``."""
        return layer % self.every == self.every - 1


@register_router("mod")
@dataclass(frozen=True, kw_only=True)
class MixtureOfDepths(DepthOptions):
    """Depth routing around plain blocks."""

    presets: ClassVar[Presets] = {
        "every_block": {"every": 1},
        "half": {"capacity": 0.5},
        "aux_bce": {"causal": "aux_bce"},
        "ema_threshold": {"causal": "ema_threshold"},
    }

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        block = Block(model, layer)
        return DepthRouted(self, model, layer, block) if self.routes(layer) else block


class DepthRouted(Layer):
    """A block that a part of each sequence's tokens enters."""

    def __init__(self, options: DepthOptions, model: ModelConfig, layer: int, block: Block) -> None:
        super().__init__()
        self.options, self.model, self.layer, self.block = options, model, layer, block
        self.router = nn.Parameter(torch.empty(1, model.width))
        self.predictor = Predictor(model, layer) if options.causal == "predictor" else None
        self.threshold = None
        if options.causal == "ema_threshold":
            self.threshold = RunningAverage(torch.zeros(()), options.threshold_decay)

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"layers.{self.layer}.depth_router")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", self.layer):
            scores_BT = score(x_BTD, self.router).squeeze(-1)
        causal_BT = scores_BT if self.predictor is None else self.predictor(x_BTD)
        if context.selection == "topk":
            selected_BT, lengths = self._topk(scores_BT, causal_BT, context)
        else:
            threshold = 0.0 if self.threshold is None else self.threshold.value
            selected_BT = causal_BT >= threshold
            real_BT = context.real(x_BTD)
            if real_BT is not None:
                selected_BT = selected_BT & real_BT
            nominal, _ = stretch(self._share, context.lengths(x_BTD), context.before(x_BTD))
            lengths = known(selected_BT.sum(1), nominal)
        context.trace.show(self.layer, "selected", selected_BT)
        context.trace.show(self.layer, "gate", scores_BT)
        context.trace.count(self.layer, "depth", lengths)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        if not any(lengths):
            return x_BTD
        entering = Selected(x_BTD, selected_BT, lengths, context, layer=self.layer)
        delta_RKD = self.block.delta(entering.x_RKD, entering.context)
        if self.options.residual == "full":
            delta_RKD = delta_RKD + entering.x_RKD
        gate_RK = self._gate(entering.gather(scores_BT))
        return entering.add_to(x_BTD, delta_RKD * gate_RK[..., None])

    def ledger(self, load: Load) -> Ledger:
        new, past = stretch(self._share, load.lengths, load.past)
        inner = load.routed(
            load.counts.get((self.layer, "depth"), new), load.counts.get((self.layer, "past"), past)
        )
        router = matmul(
            load,
            self.layer,
            "router",
            rows=load.slots,
            inner=self.model.width,
            columns=1,
            weight_gradient=self.router.requires_grad,
        )
        total = router if self.predictor is None else router + self.predictor.ledger(load)
        return total if max(inner.lengths) == 0 else total + self.block.ledger(inner)

    def active_parameters(self) -> int:
        own = self.router.numel() + sum(
            p.numel() for p in (self.predictor.parameters() if self.predictor is not None else ())
        )
        return own + self.block.active_parameters()

    def _topk(self, scores_BT: Tensor, causal_BT: Tensor, context: Context) -> tuple[Tensor, list[int]]:
        """The training rule, and what teaches the causal one."""
        real_BT = context.real(scores_BT)
        lengths = [self._share(n) for n in context.lengths(scores_BT)]
        selected_BT = highest(scores_BT.detach(), lengths, real_BT)
        if self.threshold is not None:
            if self.training and not context.trace.repeated:
                lowest_B = scores_BT.detach().masked_fill(~selected_BT, torch.inf).amin(1)
                self.threshold.update(lowest_B.mean())
        else:
            errors_BT = F.binary_cross_entropy_with_logits(
                causal_BT, selected_BT.to(causal_BT.dtype), reduction="none"
            )
            error = errors_BT.mean() if real_BT is None else errors_BT[real_BT].mean()
            context.trace.loss(self.layer, "causal_rule", self.options.auxiliary * error)
        return selected_BT, lengths

    def _share(self, tokens: int) -> int:
        return share(self.options.capacity, tokens)

    def _gate(self, scores: Tensor) -> Tensor:
        if self.options.gate == "linear":
            return scores
        return scores.sigmoid() * (2 if self.options.gate == "scaled_sigmoid" else 1)


class Predictor(nn.Module):
    """Tells from a token alone whether it will be among the top k (section 3.5): an MLP with one hidden
    layer of half the model's width on the detached stream, so that it never bends what it watches."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer, self.hidden = model, layer, max(1, model.width // 2)
        self.up = nn.Parameter(torch.empty(self.hidden, model.width))
        self.down = nn.Parameter(torch.empty(1, self.hidden))

    def initialise(self, seed: int) -> None:
        normal_(self.up, seed, f"layers.{self.layer}.predictor.up")
        normal_(self.down, seed, f"layers.{self.layer}.predictor.down")

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Logits (B, T)."""
        x_BTD = F.rms_norm(x_BTD.detach(), x_BTD.shape[-1:])
        with component("predictor", self.layer):
            return score(F.gelu(score(x_BTD, self.up)), self.down).squeeze(-1)

    def ledger(self, load: Load) -> Ledger:
        rows, width = load.slots, self.model.width
        return matmul(
            load,
            self.layer,
            "predictor",
            rows=rows,
            inner=width,
            columns=self.hidden,
            input_gradient=False,
            weight_gradient=self.up.requires_grad,
        ) + matmul(
            load,
            self.layer,
            "predictor",
            rows=rows,
            inner=self.hidden,
            columns=1,
            input_gradient=self.up.requires_grad,
            weight_gradient=self.down.requires_grad,
        )
