"""One expert per token (Switch, Fedus et al. 2021, equations 1 and 2); in training, noise multiplies the
logits to explore: their input jitter (appendix C), applied to the scorer's output."""

from dataclasses import dataclass

import torch

from modbench import ExpertRouter, register_router


@register_router("jittered_top1")
@dataclass(frozen=True, kw_only=True)
class JitteredTop1(ExpertRouter):
    top_k: int = 1
    jitter: float = 0.1

    def choose(self, logits_NE, tokens):
        if tokens.training:
            on = logits_NE.device
            u_NE = torch.rand(logits_NE.shape, generator=tokens.generator, device=on)
            logits_NE = logits_NE * (1 + self.jitter * (2 * u_NE - 1))
        gates_N1, expert_ids_N1 = logits_NE.softmax(dim=-1).max(dim=-1, keepdim=True)
        return expert_ids_N1, gates_N1
