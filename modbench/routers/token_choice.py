"""Token choice: each token is processed by the k experts that it scores highest, and the output is
y = sum_i g_i E_i(x) over them (Shazeer et al. 2017, equation 1).

The presets follow, by equation number:

``switch``       Fedus et al. 2021: softmax scores; one expert, whose score is the gate (1, 2); an expert
                 processes tokens / experts * capacity factor tokens of a batch and drops later ones (3);
                 balance loss (4 to 6).
``mixtral``      Jiang et al. 2024, section 2.1: a softmax over the two highest logits, which equals the
                 softmax over all, renormalised.
``olmoe``        Muennighoff et al. 2024: 8 of 64 experts, gates not renormalised (1), balance loss (3),
                 z-loss (section 4.1.7; Zoph et al. 2022, equation 5).
``deepseek_v3``  DeepSeek-AI 2024: sigmoid scores (15), renormalised (13), one shared expert (12), a bias
                 for the choice only (16), a small balance loss per sequence (17 to 20), experts from 4
                 of 8 groups (section 2.1.2), gates scaled by 2.5 (its released configuration). A group
                 is scored by its best top_k / top_groups experts, here 2, which the released code and
                 Hugging Face's take whatever top_k is.

Differences from the papers: all active experts together are as wide as the dense MLP, so that active
FLOPs are equal (each of Mixtral's two is that wide). The balance loss counts assignments, not tokens,
and is 1 at an even load for every k (OLMoE's is k). Capacity is rounded up, and unused capacity is not
computed. The causal rule drops no token: which tokens are dropped depends on the rest of the batch and
on later tokens.

N tokens of a batch, E experts, K chosen.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Le
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.routing.balance import SelectionBias, balance_loss, load_of
from modbench.routing.expert_options import ExpertOptions
from modbench.routing.expert_router import ExpertRouter
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, reject_unused
from modbench.routing.scorer import LinearScorer
from modbench.routing.tokens import Tokens
from modbench.routing.topk import best_experts
from modbench.typed import Count, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class TokenChoiceOptions(ExpertOptions):
    """The options of every scheme in which tokens choose experts."""

    affinity: Literal["softmax", "sigmoid"] = "softmax"  #: function that makes scores of logits
    renormalise: bool = True  #: gates of the chosen experts sum to 1
    scaling: Positive = 1.0  #: all gates are multiplied by it
    groups: Count = 1  #: number of equal groups of experts
    top_groups: Count = 1  #: number of groups from which a token chooses experts
    balance_scope: Literal["batch", "sequence"] = "batch"  #: tokens over which the load is balanced
    #: step of the bias that balances the load by changing the choice only; 0: no bias
    bias_step: Annotated[NotNegative, Le(1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k == 1 and self.renormalise:
            raise UserError(
                "top_k 1 with renormalise true makes every gate 1 and leaves the router without "
                "a gradient; set renormalise = false"
            )
        if self.experts % self.groups:
            raise UserError(f"groups is {self.groups} of {self.experts} experts; it must divide experts")
        if self.top_groups > self.groups:
            raise UserError(f"top_groups is {self.top_groups} of {self.groups} groups; choose fewer")
        room = self.experts // self.groups * self.top_groups
        if self.top_k > room:
            raise UserError(
                f"top_k is {self.top_k} and the {self.top_groups} groups that a token may choose have "
                f"{room} experts; raise top_groups"
            )
        reject_unused(
            self,
            ("z_loss", self.affinity == "sigmoid", "affinity"),
            ("balance_scope", not self.balance, "balance"),
            ("groups", self.top_groups == self.groups, "top_groups"),
        )


@register_router("token_choice")
@dataclass(frozen=True, kw_only=True)
class TokenChoice(TokenChoiceOptions, ExpertRouter):
    """Every block's MLP is a bank of experts; each token chooses ``top_k`` of them."""

    presets: ClassVar[Presets] = {
        "one_expert": {"top_k": 1, "renormalise": False},
        "fine_grained": {"experts": 64, "top_k": 8},
        "switch": {"top_k": 1, "renormalise": False, "capacity_factor": 1.25},
        "mixtral": {"experts": 8, "top_k": 2},
        "olmoe": {"experts": 64, "top_k": 8, "renormalise": False, "z_loss": 0.001},
        "deepseek_v3": {
            "experts": 256,
            "top_k": 8,
            "affinity": "sigmoid",
            "scaling": 2.5,
            "groups": 8,
            "top_groups": 4,
            "shared_experts": 1,
            "balance": 0.0001,
            "balance_scope": "sequence",
            "bias_step": 0.001,
        },
    }

    def scorer(self, model: ModelConfig) -> nn.Module:
        return BiasedScorer(model.width, self.experts + self.no_ops(), self.bias_step)

    def scores(self, logits_NE: Tensor) -> Tensor:
        return logits_NE.sigmoid() if self.affinity == "sigmoid" else logits_NE.softmax(dim=-1)

    def shares(self, scores_NE: Tensor) -> Tensor:
        return scores_NE if self.affinity == "softmax" else super().shares(scores_NE)

    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        scores_NE, ranked_NE = self.scores(logits_NE), logits_NE
        if self.bias_step or self.groups > 1:
            ranked_NE = scores_NE.detach()
        if self.bias_step:
            ranked_NE = ranked_NE + tokens.state["bias.value"]
        expert_ids_NK = best_experts(ranked_NE, self.top_k, self.groups, self.top_groups)
        gates_NK = scores_NE.gather(1, expert_ids_NK)
        if self.renormalise:
            gates_NK = gates_NK / gates_NK.sum(dim=-1, keepdim=True)
        return expert_ids_NK, gates_NK * self.scaling if self.scaling != 1 else gates_NK

    def auxiliary_losses(
        self, logits_NE: Tensor, expert_ids_NK: Tensor, tokens: Tokens
    ) -> dict[str, Tensor]:
        if self.balance and (self.bias_step or self.groups > 1):
            # Of the scores alone, as in DeepSeek-V3's equation 18.
            expert_ids_NK = best_experts(logits_NE, self.top_k)
        losses = self.losses(logits_NE, expert_ids_NK)
        if self.balance and self.balance_scope == "sequence":
            shares_NE = self.shares(self.scores(logits_NE))
            sequences = len(tokens.lengths)
            balance = balance_loss(expert_ids_NK, shares_NE, tokens.sequences, sequences)
            losses["balance"] = self.balance * balance
        return losses

    def update(
        self, scorer: nn.Module, logits_NE: Tensor, expert_ids_NK: Tensor, tokens: Tokens
    ) -> None:
        if self.bias_step:
            scorer.bias.update(load_of(expert_ids_NK, logits_NE.shape[1]))  # type: ignore[operator, union-attr]


class BiasedScorer(LinearScorer):
    """Linear logits, and the bias that affects only the choice of experts if its ``step`` is above 0."""

    def __init__(self, width: int, experts: int, step: float) -> None:
        super().__init__(width, experts)
        self.bias = SelectionBias(experts, step) if step else None
