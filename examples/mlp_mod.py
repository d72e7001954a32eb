"""Mixture-of-Depths (Raposo et al. 2024) scored by an MLP with gated hidden units."""

from dataclasses import dataclass

from torch import nn

from modbench import DepthRouter, register_router


@register_router("mlp_mod")
@dataclass(frozen=True, kw_only=True)
class MLPMoD(DepthRouter):
    def scorer(self, model):
        hidden, output = nn.Linear(model.width, 64), nn.Linear(32, 1, bias=False)
        return nn.Sequential(hidden, nn.GLU(), output, nn.Flatten(-2))  # (B, T, D) to (B, T)
