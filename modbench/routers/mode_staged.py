"""Staged MoDE (Raposo et al. 2024, section 4.3): depth routing first, experts within the block.

Every block's MLP is a bank of experts; in every n-th block each sequence's k highest-scoring tokens
enter and are routed among that block's experts, the others pass by its attention, too (figure 7,
middle). That is the paper's equation 1, x' = r * f(X) + x for the selected, x for the rest, with a block
of experts for f. ``experts_by`` says how: each token chooses experts (`modbench.routers.token_choice`:
Shazeer et al. 2017, equation 1), or each expert chooses out of the tokens that entered
(`modbench.routers.expert_choice`: Zhou et al. 2022, equations 1 and 2).

The paper gives staged MoDE no equation of its own. What it leaves open is read so: it doesn't say which
experts it used, here token choice by default; blocks that aren't depth-routed have experts as well;
capacity, pools, balance and z-loss of a routed block are those of the tokens that entered it; each of
the two routers has its own losses and its own causal rule. Where `modbench.routers.mod` and the schemes
of experts read their papers differently, so does this.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.mlp import FeedForward
from modbench.routers.expert_choice import ExpertChoice
from modbench.routers.mod import DepthOptions
from modbench.routers.token_choice import TokenChoice
from modbench.routers.token_choice_options import TokenChoiceOptions
from modbench.routing.option_checks import reject_unused
from modbench.routing.registry import register_router
from modbench.routing.router import Presets


@register_router("mode_staged")
@dataclass(frozen=True, kw_only=True)
class StagedMoDE(DepthOptions, TokenChoiceOptions):
    """Depth routing around blocks of experts."""

    presets: ClassVar[Presets] = {
        "every_block": {"every": 1},
        "fine_grained": {"experts": 64, "top_k": 8},
        "expert_choice": {"experts_by": "expert_choice"},
    }

    experts_by: Literal["token_choice", "expert_choice"] = "token_choice"
    expert_capacity: float = 2.0  #: expert choice: experts per token on average
    pool: Literal["sequence", "batch"] = "sequence"  #: expert choice: tokens that an expert compares

    def __post_init__(self) -> None:
        DepthOptions.__post_init__(self)
        reject_unused(
            self,
            *((option, scheme != self.experts_by, "experts_by") for option, scheme in _OF.items()),
        )
        if self.experts_by == "token_choice":
            TokenChoiceOptions.__post_init__(self)
        elif self.experts >= 1 and not 0 < self.expert_capacity <= self.experts:
            raise UserError(
                f"expert_capacity is {self.expert_capacity:g} with {self.experts} experts; it must lie "
                "above 0 and be no more than experts"
            )
        else:
            self._expert_choice()

    def feed_forward(self, model: ModelConfig, layer: int) -> FeedForward:
        by_tokens = self.experts_by == "token_choice"
        experts = self._token_choice() if by_tokens else self._expert_choice()
        return experts.feed_forward(model, layer)

    def keeps_average(self) -> bool:
        return super().keeps_average() or (self.experts_by == "expert_choice" and self.experts > 1)

    def _token_choice(self) -> TokenChoice:
        return TokenChoice(**{one.name: getattr(self, one.name) for one in fields(TokenChoiceOptions)})

    def _expert_choice(self) -> ExpertChoice:
        # One expert scores all tokens alike and has no use for a decay, which may be the block's.
        decay = self.threshold_decay if self.experts > 1 else ExpertChoice.threshold_decay
        return ExpertChoice(
            experts=self.experts,
            capacity=self.expert_capacity,
            expert_width=self.expert_width,
            pool=self.pool,
            threshold_decay=decay,
        )


#: The scheme that an option belongs to, of those that belong to one alone.
_OF = {
    field.name: "token_choice"
    for field in fields(TokenChoiceOptions)
    if field.name not in ("experts", "expert_width")
} | {"expert_capacity": "expert_choice", "pool": "expert_choice"}
