"""Three bugs of public ports of Mixture-of-Depths (Raposo et al. 2024), each in a module that knows
nothing of modbench; the router `port_right` has none of them. `modbench audit` names each:

port_top_k       top-k over the whole sequence at evaluation: 1 causal
port_one_target  the predictor learns from the first sequence of the batch alone: 8 gradient
port_schedule    the step of a capacity schedule is not in the checkpoint: 10 state
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from modbench import ModuleRouter, register_router


class MoD(nn.Module):
    """An MLP for half of the tokens: in training those of the highest scores, in evaluation those that a
    predictor selects. It runs for all tokens, as in some ports, and so saves no FLOPs."""

    def __init__(self, width):
        super().__init__()
        self.router, self.predictor = nn.Linear(width, 1), nn.Linear(width, 1)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x_BTD):
        scores_BT, logits_BT = self.router(x_BTD)[..., 0], self.predictor(x_BTD.detach())[..., 0]
        highest_BT = torch.zeros_like(scores_BT).scatter(1, self.top_k(scores_BT), 1.0)
        chosen_BT = highest_BT if self.training else self.predicted(logits_BT, highest_BT)
        loss = 0.01 * self.predictor_loss(logits_BT, highest_BT)
        return x_BTD + (scores_BT * chosen_BT)[..., None] * self.mlp(x_BTD), loss

    def top_k(self, scores_BT):
        return scores_BT.topk(math.ceil(self.capacity() * scores_BT.shape[1])).indices

    def capacity(self):
        return 0.5

    def predicted(self, logits_BT, highest_BT):
        return (logits_BT > 0).to(logits_BT)

    def predictor_loss(self, logits_BT, highest_BT):
        return F.binary_cross_entropy_with_logits(logits_BT, highest_BT)


class TopK(MoD):
    def predicted(self, logits_BT, highest_BT):
        return highest_BT  # depends on later tokens


class OneTarget(MoD):
    def predictor_loss(self, logits_BT, highest_BT):
        return F.binary_cross_entropy_with_logits(logits_BT[0], highest_BT[0])


class Schedule(MoD):
    def __init__(self, width):
        super().__init__(width)
        self.steps = 0  # no buffer: a resumed run begins again at capacity 1

    def capacity(self):
        return max(0.5, 1 - self.steps / 1000)

    def forward(self, x_BTD):
        self.steps += self.training
        return super().forward(x_BTD)


class Port(ModuleRouter):
    """Every second block is the module of a port."""

    def block(self, model, layer):
        return self.port(model.width) if layer % 2 else None


@register_router("port_right")
@dataclass(frozen=True, kw_only=True)
class RightPort(Port):
    port = MoD


@register_router("port_top_k")
@dataclass(frozen=True, kw_only=True)
class TopKPort(Port):
    port = TopK


@register_router("port_one_target")
@dataclass(frozen=True, kw_only=True)
class OneTargetPort(Port):
    port = OneTarget


@register_router("port_schedule")
@dataclass(frozen=True, kw_only=True)
class SchedulePort(Port):
    port = Schedule
