"""A control: a token's position decides its expert, so a choice says nothing about the token."""

from dataclasses import dataclass

from modbench import ExpertRouter, register_router


@register_router("position_experts")
@dataclass(frozen=True, kw_only=True)
class PositionExperts(ExpertRouter):
    top_k: int = 1
    balance: float = 0.0

    def scorer(self, model):
        return None

    def choose(self, logits_NE, tokens):
        return (tokens.positions % self.experts)[:, None], logits_NE[:, :1] + 1  # gate 1
