"""Mixture-of-Depths (Raposo et al. 2024): in every n-th block, attention and MLP process the k
highest-scoring tokens of each sequence; the others skip the block.

Equation 1: x' = r * f(X) + x for the selected, x for the rest, with r = w^T x. The f of a pre-norm block
is what it adds to the residual stream (``residual = "delta"``); ``"full"`` takes it as the block's whole
output, x + r * (x + delta). The selected attend to each other only, causally, at their own positions.

Top-k over a sequence looks at later tokens, so it trains and may not predict. Causal rules, the first
two from section 3.5: ``aux_bce``, binary cross-entropy with the router's output as logit and top-k
membership as target, a token being selected where its sigmoid is 0.5 or more; ``predictor``, the same
loss on a small MLP that sees the stream behind a stop-gradient; ``ema_threshold``, an exponential
average of the lowest score selected (ours).

``scores`` other than ``learned`` are controls (the paper's is ``gaussian``), see
`modbench.routing.baselines`: no router, no predictor, and causal rules of their own.

Differences from the paper: k is rounded up; equation 1 selects what lies above a percentile, here
exactly k tokens are selected, ties going to the earlier one; ``scaled_sigmoid`` is 2 * sigmoid(r), 1 at
0; the predictor, whose shape the paper leaves open, first scales its input to unit RMS; under a control
the gate is 1 and not the random score, so that only the selection differs.

B sequences, T tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from modbench.model.config import ModelConfig
from modbench.routing.baselines import CONTROLS
from modbench.routing.depth_router import DepthRouter
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, reject_unused


@dataclass(frozen=True, kw_only=True)
class DepthOptions(DepthRouter):
    """The options of Mixture-of-Depths, around any block."""

    #: the router's scores, or a control: random, by token id, or every n-th position
    scores: Literal["learned", "gaussian", "hash", "stride"] = "learned"
    #: factor on the block's output: the score r, sigmoid(r), or 2 sigmoid(r)
    gate: Literal["linear", "sigmoid", "scaled_sigmoid"] = "linear"  # type: ignore[assignment]
    #: the gate multiplies what the block adds, or all of it
    residual: Literal["delta", "full"] = "delta"

    def __post_init__(self) -> None:
        super().__post_init__()
        controlled = self.scores != "learned"
        reject_unused(self, ("gate", controlled, "scores"), ("causal", controlled, "scores"))

    @property
    def adds_residual(self) -> bool:  # type: ignore[override]
        return self.residual == "full"

    def scorer(self, model: ModelConfig) -> nn.Module | None:
        learned = self.scores == "learned"
        return super().scorer(model) if learned else CONTROLS[self.scores](self.capacity)

    def applied_gate(self, scores_BT: Tensor) -> Tensor:
        if self.gate == "linear":
            return scores_BT
        return scores_BT.sigmoid() * (2 if self.gate == "scaled_sigmoid" else 1)


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
