"""Mixture-of-Depths (Raposo et al. 2024): in every n-th block, each sequence's k highest-scoring tokens
go through the block, attention and MLP; the others pass it by.

Equation 1: x' = r * f(X) + x for the selected, x for the rest, with r = w^T x. The f of a pre-norm block
is what it adds to the residual stream (``residual = "delta"``); ``"full"`` takes it as the block's whole
output, x + r * (x + delta). The selected attend to each other only, causally, at their own positions.

Top-k over a sequence looks at later tokens, so it trains and may not predict. Causal rules, the first
two from section 3.5: ``aux_bce``, binary cross-entropy with the router's output as logit and top-k
membership as target, a token entering where its sigmoid is 0.5 or more; ``predictor``, the same loss on
a small MLP that sees the stream behind a stop-gradient; ``ema_threshold``, an exponential average of the
lowest score that was selected (ours).

``scores`` other than ``learned`` are controls (the paper's is ``gaussian``), see
`modbench.routing.baselines`: no router, no predictor, and causal rules of their own.

Where this reads the paper differently: k is rounded up; equation 1 lets in what lies above a percentile,
here exactly k enter, ties going to the earlier token; ``scaled_sigmoid`` is 2 * sigmoid(r), 1 at 0; the
predictor, whose shape the paper leaves open, first brings its input to unit scale; under a control the
gate is 1 and not the random score, so that what is compared is who enters.

B sequences, T tokens, K selected, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Counts, Ledger, Workload, component, incremental_counts, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.layer import Layer, trains
from modbench.routing.baselines import CONTROLS
from modbench.routing.ema import EMA
from modbench.routing.force_balance import even_tokens
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.routing.option_checks import check_types, reject_unused
from modbench.routing.predictor import Predictor
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, Router
from modbench.routing.topk import capacity_tokens, highest, score, selected_of_each

__all__ = ["DepthOptions", "DepthRouted", "MixtureOfDepths", "Predictor"]


@dataclass(frozen=True, kw_only=True)
class DepthOptions(Router):
    """The options of every scheme in which a sequence's tokens are selected for a block."""

    capacity: float = 0.125  #: share of a sequence's tokens that a routed block processes
    every: int = 2  #: route every n-th block; the others stay dense
    offset: int | None = None  #: which of each group of ``every``, from 0; None: the last
    first_dense: int = 0  #: number of initial blocks that stay dense
    last_dense: int = 0  #: number of final blocks that stay dense
    scores: Literal["learned", "gaussian", "hash", "stride"] = "learned"
    gate: Literal["linear", "sigmoid", "scaled_sigmoid"] = "linear"
    residual: Literal["delta", "full"] = "delta"
    causal: Literal["predictor", "aux_bce", "ema_threshold"] = "predictor"
    auxiliary: float = 0.01  #: weight of the causal rule's cross-entropy
    threshold_decay: float = 0.95  #: of the average behind ``ema_threshold`` and ``hash``

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.capacity <= 1:
            raise UserError(f"capacity is {self.capacity:g}; it must lie in (0, 1]")
        if self.every < 1:
            raise UserError(f"every is {self.every}; it must be 1 or more")
        if self.offset is not None and not 0 <= self.offset < self.every:
            raise UserError(
                f"offset is {self.offset} with every {self.every}; it must lie between 0 and every - 1"
            )
        for name in ("first_dense", "last_dense"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.auxiliary <= 0:
            raise UserError(f"auxiliary is {self.auxiliary}; it must be above 0")
        if not 0 <= self.threshold_decay < 1:
            raise UserError(f"threshold_decay is {self.threshold_decay}; it must lie in [0, 1)")
        controlled = self.scores != "learned"
        reject_unused(
            self,
            ("gate", controlled, "scores"),
            ("causal", controlled, "scores"),
            ("auxiliary", controlled, "scores"),
            ("auxiliary", self.causal == "ema_threshold", "causal"),
            ("threshold_decay", not self._keeps_average(), "scores" if controlled else "causal"),
        )

    def _keeps_average(self) -> bool:
        """Return True if this configuration keeps an EMA threshold."""
        if self.scores == "learned":
            return self.causal == "ema_threshold"
        return self.scores == "hash"

    def routes(self, layer: int, layers: int) -> bool:
        """Return True if the block at depth ``layer`` of ``layers`` is routed."""
        which = self.every - 1 if self.offset is None else self.offset
        dense = layer < self.first_dense or layer >= layers - self.last_dense
        return layer % self.every == which and not dense

    def placed(self, model: ModelConfig, layer: int, block: Block) -> Layer:
        """``block`` at depth ``layer``: routed, or as it is.

        Raises:
            UserError: none of the model's blocks would be routed.
        """
        routed = [number for number in range(model.layers) if self.routes(number, model.layers)]
        if not routed:
            raise UserError(
                f"no block of {model.layers} is routed with every {self.every}, offset {self.offset}, "
                f"first_dense {self.first_dense} and last_dense {self.last_dense}; leave room for one"
            )
        return DepthRouted(self, model, layer, block) if layer in routed else block


@register_router("mod")
@dataclass(frozen=True, kw_only=True)
class MixtureOfDepths(DepthOptions):
    """Depth routing around plain blocks."""

    presets: ClassVar[Presets] = {
        "every_block": {"every": 1},
        "half": {"capacity": 0.5},
        "aux_bce": {"causal": "aux_bce"},
        "ema_threshold": {"causal": "ema_threshold"},
        "gaussian": {"scores": "gaussian"},
        "hash": {"scores": "hash"},
        "stride": {"scores": "stride"},
    }

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return self.placed(model, layer, Block(model, layer))


class DepthRouted(Layer):
    """A block that a part of each sequence's tokens enters."""

    router: nn.Parameter | None

    def __init__(self, options: DepthOptions, model: ModelConfig, layer: int, block: Block) -> None:
        super().__init__()
        self.options, self.model, self.layer, self.block = options, model, layer, block
        self.control = None
        if options.scores != "learned":
            self.control = CONTROLS[options.scores](options.capacity, layer)
        learned = self.control is None
        self.router = nn.Parameter(torch.empty(1, model.width)) if learned else None
        self.predictor = None
        if learned and options.causal == "predictor":
            self.predictor = Predictor(model, layer)
        self.threshold = None
        if learned and options.causal == "ema_threshold":
            self.threshold = EMA(torch.zeros(()), options.threshold_decay)
        elif self.control is not None and self.control.cut is None:
            start = torch.tensor(1 - options.capacity)  # if all tokens came equally often
            self.threshold = EMA(start, options.threshold_decay)

    @property
    def has_data_dependent_shapes(self) -> bool:  # type: ignore[override]
        return self.block.has_data_dependent_shapes

    def initialise(self, seed: int) -> None:
        if self.router is not None:
            normal_(self.router, seed, f"layers.{self.layer}.depth_router")

    @property
    def adds_residual(self) -> bool:
        """True if the gate also multiplies the residual stream (for the audit's probe 6)."""
        return self.options.residual == "full"

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        scores_BT, causal_BT = self._scores(x_BTD, context)
        if context.selection == "topk":
            selected_BT, lengths = self._topk(scores_BT, causal_BT, context)
            context.trace.show(self.layer, "predicted", causal_BT >= self._cut())
        else:
            selected_BT = even_tokens(causal_BT >= self._cut(), context, self.options.capacity)
            real_BT = context.real(x_BTD)
            if real_BT is not None:
                selected_BT = selected_BT & real_BT
            lengths = selected_of_each(selected_BT, lambda: self._nominal(x_BTD, context))
        context.trace.show(self.layer, "selected", selected_BT)
        gate_BT = self._gate(scores_BT.detach()) if self.control is None else torch.ones_like(scores_BT)
        context.trace.show(self.layer, "gate", gate_BT)
        context.trace.count(self.layer, "depth", lengths)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        if not any(lengths):
            return x_BTD
        entering = GatheredTokens(x_BTD, selected_BT, lengths, context, layer=self.layer)
        delta_RKD = self.block.delta(entering.x_RKD, entering.context)
        if self.options.residual == "full":
            delta_RKD = delta_RKD + entering.x_RKD
        if self.control is None:
            delta_RKD = delta_RKD * self._gate(entering.gather(scores_BT))[..., None]
        return entering.add_to(x_BTD, delta_RKD)

    def ledger(self, workload: Workload) -> Ledger:
        new, past = incremental_counts(self._share, workload.lengths, workload.past)
        inner = workload.routed(
            workload.counts.get((self.layer, "depth"), new),
            workload.counts.get((self.layer, "past"), past),
        )
        parts = []
        if self.router is not None:
            parts.append(
                matmul(
                    workload,
                    self.layer,
                    "router",
                    rows=workload.slots,
                    inner=self.model.width,
                    columns=1,
                    weight_gradient=self.router.requires_grad,
                )
            )
        if self.predictor is not None:
            parts.append(self.predictor.ledger(workload))
        if max(inner.lengths) > 0:
            parts.append(self.block.ledger(inner))
        return Ledger.sum(parts)

    def nominal_counts(self, workload: Workload) -> Counts:
        new, _ = incremental_counts(self._share, workload.lengths, workload.past)
        return {(self.layer, "depth"): new} | dict(self.block.nominal_counts(workload.routed(new)))

    def takes_gradient(self, workload: Workload) -> bool:
        # The predictor learns from a loss of its own.
        return (self.router is not None and self.router.requires_grad) or trains(self.block)

    def active_parameters(self) -> int:
        everything = sum(parameter.numel() for parameter in self.parameters())
        inside = sum(parameter.numel() for parameter in self.block.parameters())
        return everything - inside + self.block.active_parameters()

    def _scores(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return the scores of top-k and those of the causal rule, (B, T) each."""
        if self.control is not None:
            scores_BT = self.control(x_BTD, context)
            return scores_BT, scores_BT
        assert self.router is not None
        with component("router", self.layer):
            scores_BT = score(x_BTD, self.router).squeeze(-1)
        return scores_BT, scores_BT if self.predictor is None else self.predictor(x_BTD)

    def _cut(self) -> float | Tensor:
        """Return the threshold of the causal rule; a logit of 0 is a probability of one half."""
        if self.threshold is not None:
            return self.threshold.value
        return 0.0 if self.control is None or self.control.cut is None else self.control.cut

    def _topk(self, scores_BT: Tensor, causal_BT: Tensor, context: Context) -> tuple[Tensor, list[int]]:
        """The training rule, and what teaches the causal one."""
        real_BT = context.real(scores_BT)
        lengths = [self._share(n) for n in context.lengths(scores_BT)]
        selected_BT = highest(scores_BT.detach(), lengths, real_BT)
        selected_BT = even_tokens(selected_BT, context, self.options.capacity)
        if self.threshold is not None:
            if self.training and not context.trace.repeated:
                lowest_B = scores_BT.detach().masked_fill(~selected_BT, torch.inf).amin(1)
                self.threshold.update(lowest_B.mean())
        elif self.control is None:
            errors_BT = F.binary_cross_entropy_with_logits(
                causal_BT, selected_BT.to(causal_BT.dtype), reduction="none"
            )
            error = errors_BT.mean() if real_BT is None else errors_BT[real_BT].mean()
            context.trace.loss(self.layer, "causal_rule", self.options.auxiliary * error)
        return selected_BT, lengths

    def _nominal(self, x_BTD: Tensor, context: Context) -> Sequence[int]:
        """How many of each sequence's new tokens the capacity is for."""
        return incremental_counts(self._share, context.lengths(x_BTD), context.before(x_BTD))[0]

    def _share(self, tokens: int) -> int:
        return capacity_tokens(self.options.capacity, tokens)

    def _gate(self, scores: Tensor) -> Tensor:
        if self.options.gate == "linear":
            return scores
        return scores.sigmoid() * (2 if self.options.gate == "scaled_sigmoid" else 1)
