"""Staged MoDE (Raposo et al. 2024, section 4.3): depth routing first, experts within the block.

Every block's MLP is a bank of token-choice experts; in every n-th block each sequence's k
highest-scoring tokens enter and choose among that block's experts, the others pass it by.
"""

from dataclasses import dataclass
from typing import ClassVar

from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.registry import register_router
from modbench.model.router import Layer, Presets
from modbench.routers.mod import DepthOptions, DepthRouted
from modbench.routers.token_choice import TokenChoiceExperts, TokenChoiceOptions


@register_router("mode_staged")
@dataclass(frozen=True, kw_only=True)
class StagedMoDE(DepthOptions, TokenChoiceOptions):
    """Depth routing around blocks of token-choice experts."""

    presets: ClassVar[Presets] = {
        "every_block": {"every": 1},
        "fine_grained": {"experts": 64, "top_k": 8},
    }

    def __post_init__(self) -> None:
        DepthOptions.__post_init__(self)
        TokenChoiceOptions.__post_init__(self)

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        block = Block(model, layer, TokenChoiceExperts(self, model, layer))
        return DepthRouted(self, model, layer, block) if self.routes(layer) else block
