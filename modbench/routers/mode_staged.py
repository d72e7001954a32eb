"""Staged MoDE (Raposo et al. 2024, section 4.3): depth routing first, experts within the block.

Every block's MLP is a bank of experts. In every n-th block the k highest-scoring tokens of each sequence
are selected, as in `modbench.routers.mod`, and routed among that block's experts; the others skip its
attention, too (figure 7, middle). ``experts_by``: each token chooses experts
(`modbench.routers.token_choice`), or each expert chooses among the selected tokens
(`modbench.routers.expert_choice`).

The paper gives no equation and does not say which experts it used: here token choice by default. Blocks
without depth routing have experts as well. Capacity, pools, balance loss and z-loss of a routed block
are those of its selected tokens; each of the two routers has its own losses and its own causal rule. The
differences of the three schemes from their papers apply here, too.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from torch import nn

from modbench.model.config import ModelConfig
from modbench.routers.expert_choice import ExpertChoice
from modbench.routers.mod import DepthOptions
from modbench.routers.token_choice import TokenChoice, TokenChoiceOptions
from modbench.routing.expert_router import ExpertScheme
from modbench.routing.registry import register_router
from modbench.routing.router import Presets, reject_unused

_TOKEN_CHOICE = {field.name for field in fields(TokenChoiceOptions)}


@register_router("mode_staged")
@dataclass(frozen=True, kw_only=True)
class StagedMoDE(DepthOptions, TokenChoiceOptions):
    """Depth routing around blocks of experts."""

    presets: ClassVar[Presets] = {
        "every_block": {"every": 1},
        "fine_grained": {"experts": 64, "top_k": 8},
        "expert_choice": {"experts_by": "expert_choice"},
    }

    #: each token chooses experts, or each expert chooses among the selected tokens
    experts_by: Literal["token_choice", "expert_choice"] = "token_choice"
    expert_capacity: float = 2.0  #: expert choice: experts per token on average
    pool: Literal["sequence", "batch"] = "sequence"  #: expert choice: tokens that an expert compares

    def __post_init__(self) -> None:
        DepthOptions.__post_init__(self)
        by_tokens = self.experts_by == "token_choice"
        unused = (
            ("expert_capacity", "pool") if by_tokens else _TOKEN_CHOICE - {"experts", "expert_width"}
        )
        reject_unused(self, *((option, True, "experts_by") for option in sorted(unused)))
        if by_tokens:
            TokenChoiceOptions.__post_init__(self)
        else:
            self._experts()

    def feed_forward(self, model: ModelConfig, layer: int) -> nn.Module:
        return self._experts().feed_forward(model, layer)

    def _experts(self) -> ExpertScheme:
        if self.experts_by == "token_choice":
            return TokenChoice(**{name: getattr(self, name) for name in _TOKEN_CHOICE})
        return ExpertChoice(
            experts=self.experts,
            capacity=self.expert_capacity,
            expert_width=self.expert_width,
            pool=self.pool,
            threshold_decay=self.threshold_decay,
        )
