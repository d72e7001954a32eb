"""The conditional feed-forward part of CoLT5 (Ainslie et al. 2023, arXiv 2303.09752): a light MLP
for each token, a heavy one for those with a score above 0. Low-level: it routes by itself."""

from dataclasses import dataclass

from torch import nn

from modbench import Router, register_router
from modbench.model.block import Block
from modbench.model.mlp import FeedForward
from modbench.routing.topk import counts_to_host, nonzero_indices


@register_router("light_heavy")
@dataclass(frozen=True, kw_only=True)
class LightHeavy(Router):
    capacity: float = 0.25  # share of the tokens that the heavy MLP is to process

    def build_layer(self, model, layer):
        return Block(model, layer, LightHeavyMLP(self, model, layer))


class LightHeavyMLP(FeedForward):
    has_data_dependent_shapes = True  # torch.compile leaves it out

    def __init__(self, options, model, layer):
        super().__init__()
        self.capacity, self.layer = options.capacity, layer
        self.router = nn.Linear(model.width, 1)
        self.light, self.heavy = (mlp(model.width, n) for n in (model.hidden // 4, model.hidden))

    def forward(self, x_BTD, context):
        scores_BT = self.router(x_BTD).squeeze(-1)
        gate_BT, tokens = scores_BT.sigmoid(), sum(context.lengths(x_BTD))
        heavy_BT, real_BT = scores_BT > 0, context.real(x_BTD)
        if real_BT is not None:  # padding is neither routed nor part of the loss
            heavy_BT, gate_BT = heavy_BT & real_BT, gate_BT.masked_fill(~real_BT, 0.0)
        counts = counts_to_host(heavy_BT.sum()[None], [int(self.capacity * tokens)])
        context.trace.count(self.layer, "experts", counts)  # how many were routed
        if context.selection == "topk":  # a loss of training
            density = gate_BT.sum() / tokens
            context.trace.loss(self.layer, "density", (density - self.capacity) ** 2)
        rows_N, x_SD = nonzero_indices(heavy_BT, sum(counts)), x_BTD.flatten(0, 1)
        gate_N1 = gate_BT.flatten().index_select(0, rows_N)[:, None]
        y_ND = self.heavy(x_SD.index_select(0, rows_N)) * gate_N1
        y_SD = y_ND.new_zeros(x_SD.shape).index_add(0, rows_N, y_ND)
        return self.light(x_BTD) + y_SD.view_as(x_BTD)


def mlp(width, hidden):
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
