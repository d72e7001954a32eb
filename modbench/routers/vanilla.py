"""The dense decoder: no routing. What every scheme is held against."""

from dataclasses import dataclass

from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.registry import register_router
from modbench.model.router import Layer, Router


@register_router("vanilla")
@dataclass(frozen=True, kw_only=True)
class Vanilla(Router):
    """Every token goes through every block."""

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer)
