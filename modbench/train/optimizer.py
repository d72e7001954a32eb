"""The optimizer of a run."""

import torch

from modbench.model.language_model import LanguageModel
from modbench.train.config import TrainConfig


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
    return torch.optim.AdamW(groups, lr=float(train.learning_rate), betas=betas, fused=True)
