"""SkipLayer (Zeng et al. 2023, arXiv 2311.15436): each token decides by a noisy binary gate if a block
processes it; a loss holds the share of processed tokens at ``capacity``."""

from dataclasses import dataclass

import torch

from modbench import DepthRouter, register_router


@register_router("gumbel_skip")
@dataclass(frozen=True, kw_only=True)
class GumbelSkip(DepthRouter):
    capacity: float = 0.5
    penalty: float = 1.0

    def selected(self, scores_BT, tokens):
        if not tokens.training:
            return scores_BT > 0
        u_BT = torch.rand(scores_BT.shape, generator=tokens.generator, device=tokens.ids.device)
        return scores_BT + u_BT.logit(eps=1e-6) > 0  # the difference of two Gumbel samples

    def gate(self, scores_BT):
        return scores_BT.sigmoid()

    def losses(self, scores_N, selected_N, tokens):
        return {"density": self.penalty * (scores_N.sigmoid().mean() - self.capacity) ** 2}
