"""Mixture-of-Depths (Raposo et al. 2024) scored by an MLP, with a gate from -1 to 1."""

from dataclasses import dataclass

from torch import nn

from modbench import DepthRouter, register_router


@register_router("mlp_mod")
@dataclass(frozen=True, kw_only=True)
class MLPMoD(DepthRouter):
    def scorer(self, model):
        hidden, output = nn.Linear(model.width, 32), nn.Linear(32, 1)
        return nn.Sequential(hidden, nn.GELU(), output, nn.Flatten(-2))

    def gate(self, scores_BT):
        return scores_BT.tanh()  # it can subtract what the block adds
