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
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.flops.component import component
from modbench.flops.ledger import Ledger, Load, matmul
from modbench.model.average import RunningAverage
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.initial import normal_
from modbench.model.registry import register_router
from modbench.model.router import Layer, Router
from modbench.model.scores import highest, packed, score, share


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
        sequences, tokens, width = x_BTD.shape
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
            lengths = selected_BT.sum(1).tolist()
        context.trace.show(self.layer, "selected", selected_BT)
        context.trace.show(self.layer, "gate", scores_BT)
        context.trace.count(self.layer, "depth", lengths)
        longest = max(lengths)
        if longest == 0:
            return x_BTD

        index_BK = packed(selected_BT, longest)
        first_B1 = torch.arange(sequences, device=x_BTD.device)[:, None] * tokens
        slots_S = (index_BK + first_B1).flatten()
        x_SD = x_BTD.reshape(-1, width)
        x_BKD = x_SD.index_select(0, slots_S).view(sequences, longest, width)
        ragged = min(lengths) != longest
        inner = Context(
            selection=context.selection,
            lengths_B=torch.tensor(lengths, device=x_BTD.device) if ragged else None,
            positions_BT=context.positions(x_BTD).gather(1, index_BK),
            trace=context.trace,
        )
        delta_BKD = self.block.delta(x_BKD, inner)
        if self.options.residual == "full":
            delta_BKD = delta_BKD + x_BKD
        update_BKD = delta_BKD * self._gate(scores_BT.gather(1, index_BK))[..., None]
        update_SD = update_BKD.flatten(0, 1).to(x_SD.dtype)
        if ragged:
            # The filling slots must leave their tokens bit for bit as they are.
            filled_N = selected_BT.gather(1, index_BK).flatten().nonzero().squeeze(1)
            slots_S, update_SD = slots_S.index_select(0, filled_N), update_SD.index_select(0, filled_N)
        return x_SD.index_add(0, slots_S, update_SD).view_as(x_BTD)

    def ledger(self, load: Load) -> Ledger:
        nominal = tuple(share(self.options.capacity, tokens) for tokens in load.lengths)
        inner = load.routed(load.counts.get((self.layer, "depth"), nominal))
        router = matmul(load, self.layer, "router", rows=load.slots, inner=self.model.width, columns=1)
        total = router if self.predictor is None else router + self.predictor.ledger(load)
        return total if max(inner.lengths) == 0 else total + self.block.ledger(inner)

    def active_parameters(self) -> int:
        own = self.router.numel() + sum(
            p.numel() for p in (self.predictor.parameters() if self.predictor is not None else ())
        )
        return own + self.block.active_parameters()

    def _topk(self, scores_BT: Tensor, causal_BT: Tensor, context: Context) -> tuple[Tensor, list[int]]:
        """The training rule, and what teaches the causal one."""
        sequences, tokens = scores_BT.shape
        real_BT = None
        present = [tokens] * sequences
        if context.lengths_B is not None:
            present = context.lengths_B.tolist()
            real_BT = torch.arange(tokens, device=scores_BT.device) < context.lengths_B[:, None]
        lengths = [share(self.options.capacity, n) for n in present]
        selected_BT = highest(scores_BT.detach(), lengths, real_BT)
        if self.threshold is not None:
            if self.training:
                lowest_B = scores_BT.detach().masked_fill(~selected_BT, torch.inf).amin(1)
                self.threshold.update(lowest_B.mean())
        else:
            errors_BT = F.binary_cross_entropy_with_logits(
                causal_BT, selected_BT.to(causal_BT.dtype), reduction="none"
            )
            error = errors_BT.mean() if real_BT is None else errors_BT[real_BT].mean()
            context.trace.loss(self.layer, "causal_rule", self.options.auxiliary * error)
        return selected_BT, lengths

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
        ) + matmul(load, self.layer, "predictor", rows=rows, inner=self.hidden, columns=1)
