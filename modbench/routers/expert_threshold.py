"""Expert Threshold routing (Sun et al. 2026, arXiv 2603.11535, section 3): expert choice over an
unlimited batch. Each expert keeps a threshold, an exponential average of the k-th highest score of a
batch, k = tokens * capacity / experts. It processes every token whose score is at or above it, in
training and at inference. Tokens are not compared with each other, so nothing leaks. The number of
experts per token varies, and loads are even in expectation without a balance loss.

As in the authors' code, thresholds apply to the router's logits r, the gate is sigmoid(r), not
renormalised, and the decay of the average is 0.99.

Differences from the paper: thresholds apply from the first step on, without initial steps of expert
choice (which leak); they start at the quantile of N(0, 1), the initial distribution of the logits. They
are updated after each training forward pass. k is rounded up. There is no shared expert, so that active
FLOPs equal the dense MLP's.

N tokens of a batch, E experts.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

from torch import Tensor, nn

from modbench.routing.registry import register_router
from modbench.routing.router import Presets
from modbench.routing.threshold_router import ThresholdRouter
from modbench.routing.tokens import Tokens


@register_router("expert_threshold")
@dataclass(frozen=True, kw_only=True)
class ExpertThreshold(ThresholdRouter):
    """Experts take the tokens at or above their thresholds, in training, too."""

    presets: ClassVar[Presets] = {
        "one_expert": {"capacity": 1.0},
        "fine_grained": {"experts": 64, "capacity": 8.0},
    }

    gate: Literal["sigmoid", "softmax"] = "sigmoid"  #: gate of a chosen expert, from the logits
    threshold_decay: float = 0.99  #: decay of the exponential average

    def start(self) -> float:
        # Where every expert takes every token, a quantile that is finite.
        return NormalDist().inv_cdf(1 - min(self.capacity / self.experts, 1 - 1e-4))

    def scores(self, logits_NE: Tensor) -> Tensor:
        return logits_NE.sigmoid() if self.gate == "sigmoid" else logits_NE.softmax(dim=-1)

    def assign(self, logits_NE: Tensor, tokens: Tokens) -> Tensor:
        cut_E = tokens.state["threshold.value"].to(logits_NE.dtype)
        return self.scores(logits_NE).masked_fill(~(logits_NE >= cut_E), 0.0)

    def update(self, scorer: nn.Module, logits_NE: Tensor, gates_NE: Tensor, tokens: Tokens) -> None:
        highest_KE = logits_NE.topk(self.taken(len(logits_NE)), dim=0).values
        scorer.threshold.update(highest_KE[-1])  # type: ignore[operator, union-attr]
