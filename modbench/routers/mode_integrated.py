"""Integrated MoDE (Raposo et al. 2024, section 4.3): attention for all; among the experts, some that do
nothing, so that a token may choose to pass by. A no-op expert costs and adds nothing; its gate is
renormalised with the others', so that choosing it also turns the rest down.

How many tokens choose it depends on the routing. Nominal is what a balanced router spends,
experts / (experts + no_op_experts) of all assignments, rounded down; realised is counted.
"""

from dataclasses import dataclass
from typing import ClassVar

from modbench.errors import UserError
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.registry import register_router
from modbench.model.router import Layer, Presets
from modbench.routers.token_choice import TokenChoiceExperts, TokenChoiceOptions


@register_router("mode_integrated")
@dataclass(frozen=True, kw_only=True)
class IntegratedMoDE(TokenChoiceOptions):
    """Token choice among real and no-op experts."""

    presets: ClassVar[Presets] = {"one_no_op": {"no_op_experts": 1}}

    no_op_experts: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.no_op_experts < 1:
            raise UserError(f"no_op_experts is {self.no_op_experts}; it must be 1 or more")
        if self.groups > 1:
            raise UserError(
                f"groups is {self.groups} with no_op_experts {self.no_op_experts}, which stand in no "
                "group; set groups = 1"
            )

    def _no_ops(self) -> int:
        return self.no_op_experts

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        experts = TokenChoiceExperts(self, model, layer, no_ops=self.no_op_experts)
        return Block(model, layer, experts)
