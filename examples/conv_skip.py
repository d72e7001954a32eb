"""A causal convolution over three tokens decides which tokens a block processes, as a binary gate (Zeng
et al. 2023, arXiv 2311.15436) does from one. What a token adds to later scores is kept in the cache."""

from dataclasses import dataclass

import torch
from torch import nn

from modbench import Router, register_router
from modbench.model.block import Block
from modbench.model.layer import Layer
from modbench.routing.gathered_tokens import GatheredTokens, group_equal_sizes
from modbench.routing.topk import capacity_tokens, counts_to_host, score


@register_router("conv_skip")
@dataclass(frozen=True, kw_only=True)
class ConvSkip(Router):
    capacity: float = 0.5  # share of the tokens that a routed block is to process

    def build_layer(self, model, layer):
        return ConvLayer(self.capacity, model, layer) if layer % 2 else Block(model, layer)


class ConvLayer(Layer):
    has_data_dependent_shapes = True  # torch.compile leaves it out

    def __init__(self, capacity, model, layer):
        super().__init__()
        self.capacity, self.layer = capacity, layer
        self.block = Block(model, layer)
        self.router = nn.Linear(model.width, 3, bias=False)

    def scores(self, x_BTD, context):
        """The sum of what a token and the two before it contribute."""
        now_BT, next_BC, second_BC = score(x_BTD, self.router.weight).unbind(-1)
        at_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand(x_BTD.shape[:2])
        if context.cache is not None:
            kept = -1 - self.layer  # the keys and values of attention are kept under 0 and above
            past = context.cache.lengths(kept, context.rows)
            new = [values_BT[:, None, :, None] for values_BT in (next_BC, second_BC)]
            both = context.cache.extend(kept, *new, context.lengths(x_BTD), context.rows)
            next_BC, second_BC = (values_BKCP[:, 0, :, 0] for values_BKCP in both)
            at_BT = at_BT + torch.tensor(past, device=x_BTD.device)[:, None]
        return now_BT + earlier(next_BC, at_BT - 1) + earlier(second_BC, at_BT - 2)

    def forward(self, x_BTD, context):
        scores_BT, lengths = self.scores(x_BTD, context), context.lengths(x_BTD)
        gate_BT, selected_BT, real_BT = scores_BT.sigmoid(), scores_BT > 0, context.real(x_BTD)
        if real_BT is not None:  # padding is neither processed nor part of the loss
            selected_BT, gate_BT = selected_BT & real_BT, gate_BT.masked_fill(~real_BT, 0.0)
        nominal = [capacity_tokens(self.capacity, tokens) for tokens in lengths]
        counts = counts_to_host(selected_BT.sum(1), nominal)
        context.trace.count(self.layer, "depth", counts)  # how many were routed
        if context.cache is not None:
            past = context.cache.lengths(self.layer, context.rows)
            context.trace.count(self.layer, "past", past)
        context.trace.show(self.layer, "selected", selected_BT)
        context.trace.show(self.layer, "gate", gate_BT)
        if context.selection == "topk":  # a loss of training
            density = gate_BT.sum() / sum(lengths)
            context.trace.loss(self.layer, "density", (density - self.capacity) ** 2)
        out_BTD = x_BTD
        for group in group_equal_sizes(counts):
            gathered = GatheredTokens(x_BTD, selected_BT, group, context, layer=self.layer)
            delta_RKD = self.block.delta(gathered.x_RKD, gathered.context)
            out_BTD = gathered.add_to(out_BTD, delta_RKD * gathered.gather(gate_BT)[..., None])
        return out_BTD


def earlier(values_BC, at_BT):
    """The values at ``at_BT``; 0 before the start of the text."""
    taken_BT = values_BC.gather(1, at_BT.clamp(0, values_BC.shape[1] - 1))
    return taken_BT.masked_fill(at_BT < 0, 0.0)
