"""The optimizer of a run."""

from typing import Any

import torch

from modbench.model.language_model import LanguageModel
from modbench.train.config import TrainConfig

#: How steps are taken. A fused one takes no mixture of weights that are shared out and others.
FUSED: dict[str, Any] = {"foreach": None, "fused": True}
ONE_BY_ONE: dict[str, Any] = {"foreach": False, "fused": None}


def build_optimizer(model: LanguageModel, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices; vectors and the embedding have none."""
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.dim() >= 2 and p is not model.embedding.weight]
    others = [p for p in parameters if p.dim() < 2 or p is model.embedding.weight]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (train.beta1, train.beta2)
    how = ONE_BY_ONE if train.ranks > 1 else FUSED
    return torch.optim.AdamW(groups, lr=float(train.learning_rate), betas=betas, **how)
