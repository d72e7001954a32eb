"""Layer skipping by a learned threshold: D-LLM (Jiang et al. 2024, NeurIPS). Before a block, each token
is selected or skipped by its own score (equations 7 and 10). A skipped token leaves no key, and the
selected ones attend to each other only (13). No token is compared with another, so training and
inference use the same causal rule.

The decision is hard forward, p >= 1/2 with p = sigmoid(r), and soft backward, a straight-through
estimator (8 and 9): ``gate = "straight_through"``; ``"sigmoid"`` multiplies what the block adds by p
instead. A loss keeps to the budget (11, 12 and 14): here penalty * (share selected - target)^2 for each
block, as in SkipLayer (Zeng et al. 2023, arXiv 2311.15436); D-LLM takes the absolute difference of each
token's share of all blocks.

Other differences from D-LLM: r = w^T x + b on the stream at unit RMS, not an MLP with two outputs; no
Gumbel noise; a skipped block is not computed in training either, so that a skipped token trains the
router through the budget alone; every n-th block is routed, not all but the first two; no initial tokens
that are always selected.

B sequences, T tokens, D model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.model.config import ModelConfig
from modbench.routing.depth_router import DepthScheme
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, check_types
from modbench.routing.scorer import LinearScorer
from modbench.routing.tokens import Tokens
from modbench.routing.topk import score
from modbench.typed import Count, Part, Positive


@register_router("threshold_skip")
@dataclass(frozen=True, kw_only=True)
class ThresholdSkip(DepthScheme):
    """Every n-th block processes the tokens that score high enough."""

    presets: ClassVar[Presets] = {"every_block": {"every": 1}, "eighth": {"target": 0.125}}

    every: Count = 2  #: route every n-th block; the others stay dense
    target: Part = 0.5  #: share of the tokens that a routed block should process
    penalty: Positive = 1.0  #: weight of the budget loss
    #: factor on the block's output: 1 with a straight-through gradient, or sigmoid(r)
    gate: Literal["straight_through", "sigmoid"] = "straight_through"  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def capacity(self) -> float:
        return self.target

    def scorer(self, model: ModelConfig) -> nn.Module:
        return BiasedScorer(model.width, self.target)

    def applied_gate(self, scores_BT: Tensor) -> Tensor:
        probability_BT = scores_BT.sigmoid()
        if self.gate == "sigmoid":
            return probability_BT
        return 1 + (probability_BT - probability_BT.detach())  # exactly 1

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return scores_BT >= 0  # a probability of one half or more

    def losses(self, scores_N: Tensor, selected_N: Tensor, tokens: Tokens) -> Mapping[str, Tensor]:
        """The penalty: its value is that of the share selected, its gradient that of the mean p."""
        soft = scores_N.sigmoid().sum() / len(scores_N)
        share = selected_N.sum().to(soft.dtype) / len(scores_N) + (soft - soft.detach())
        return {"budget": self.penalty * (share - self.target).square()}


class BiasedScorer(LinearScorer):
    """w^T x + b on the stream at unit scale. b starts where the target's share is selected if w^T x is
    N(0, 1)."""

    def __init__(self, width: int, target: float) -> None:
        super().__init__(width, None, stream="depth_router")
        self.target = target
        self.bias = nn.Parameter(torch.empty(1))

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        nn.init.constant_(self.bias, NormalDist().inv_cdf(min(self.target, 1 - 1e-4)))

    def forward(self, x_BTD: Tensor) -> Tensor:
        wide_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        scores_BT1 = score(F.rms_norm(wide_BTD, x_BTD.shape[-1:]), self.weight)
        return (scores_BT1 + self.bias.to(scores_BT1.dtype)).squeeze(-1)
