"""ReMoE (Wang et al. 2024, arXiv 2412.14711): gates are R(x) = ReLU(x W) (section 3.2), and a token is
processed by every expert whose gate is above 0. Tokens are not compared with each other, so training
and inference use the same causal rule, and the output is continuous in the router's weights.

An L1 loss on the gates steers the number of experts per token: lambda / (L T) * sum f_e R(x_t)_e
(equations 6 and 10), whose weights f_e = E / (k T) * (tokens of expert e) also balance the load (11).
After each step lambda is multiplied by alpha^sign((1 - k/E) - S), where S is the fraction of gates that
are 0 (7 and 8). lambda starts at 1e-8 and alpha is 1.2: for about the first hundred steps more than k
experts per token are active (section 3.5), and their FLOPs are counted.

Differences from the paper: each layer has its own lambda, updated from its own S, where the paper has
one for all layers; here every layer reaches k on average.

N tokens of a batch, E experts.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.routing.expert_options import BankOptions
from modbench.routing.expert_router import ExpertScheme
from modbench.routing.registry import register_router
from modbench.routing.router import Presets
from modbench.routing.scorer import LinearScorer
from modbench.routing.step_state import Steered
from modbench.routing.tokens import Tokens
from modbench.typed import Count, Positive


@register_router("relu_routing")
@dataclass(frozen=True, kw_only=True)
class ReluRouting(BankOptions, ExpertScheme):
    """Every block's MLP is a bank of experts, gated by a ReLU."""

    presets: ClassVar[Presets] = {
        "one_expert": {"active_experts": 1},
        "fine_grained": {"experts": 64, "active_experts": 8},
    }

    active_experts: Count = 2  #: k, the mean number of experts per token that the loss aims at
    start_coefficient: Positive = 1e-8  #: lambda before training
    #: alpha, the factor by which lambda changes in a training step
    multiplier: Annotated[float, Gt(1)] = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.active_experts > self.experts:
            raise UserError(
                f"active_experts is {self.active_experts} of {self.experts} experts; it must lie "
                "between 1 and experts"
            )

    def scorer(self, model: ModelConfig) -> nn.Module:
        return SteeredScorer(model, self.experts)

    def scores(self, logits_NE: Tensor) -> Tensor:
        return logits_NE.relu()

    def assign(self, logits_NE: Tensor, tokens: Tokens) -> Tensor:
        return self.scores(logits_NE)

    def nominal_experts_per_token(self) -> float:
        return self.active_experts

    def coefficient(self, exponent: Tensor) -> Tensor:
        """Return lambda = start * alpha^exponent."""
        grown = self.multiplier ** exponent.to(torch.float64)
        return (self.start_coefficient * grown).to(torch.float32)

    def auxiliary_losses(self, logits_NE: Tensor, gates_NE: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        coefficient = self.coefficient(tokens.state["exponent"]).to(gates_NE.dtype)
        load_E = (gates_NE > 0).sum(0).to(gates_NE.dtype)
        frequency_E = load_E * (self.experts / (self.active_experts * len(gates_NE)))
        loss = (frequency_E * gates_NE.sum(0)).sum() / (tokens.state["layers"] * len(gates_NE))
        return {"sparsity": coefficient * loss}

    def update(self, scorer: nn.Module, logits_NE: Tensor, gates_NE: Tensor, tokens: Tokens) -> None:
        scorer.update((gates_NE > 0).sum() - len(gates_NE) * self.active_experts)  # type: ignore[operator]


class SteeredScorer(Steered, LinearScorer):
    """Linear logits, and the exponent that steers the number of gates above 0: a whole number neither
    underflows nor changes with the dtype. What it has seen is by how many there are too many."""

    exponent: Tensor

    def __init__(self, model: ModelConfig, experts: int) -> None:
        super().__init__(model.width, experts)
        self.register_buffer("exponent", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("layers", torch.tensor(model.layers), persistent=False)

    def move(self, seen: Tensor) -> None:
        """S is below its target where more gates are above 0 than there should be."""
        self.exponent += seen.sign()
