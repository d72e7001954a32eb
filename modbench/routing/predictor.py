"""The predictor of depth routing: a causal stand-in for top-k over the sequence.

B sequences, T tokens, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.ledger import Ledger, Workload, component
from modbench.model.config import ModelConfig
from modbench.model.init import normal_
from modbench.model.layer import weight_ledger
from modbench.routing.topk import score


class Predictor(nn.Module):
    """Predicts from a token alone if top-k over the sequence would select it (Raposo et al. 2024,
    section 3.5): an MLP with one hidden layer of half the model's width. It reads the detached residual
    stream, so that its loss does not change the model.

    Every token passes through it, selected or not, so its hidden layer has the dtype of the block's
    matmuls; the output is computed in float32, as all router scores are."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.hidden = max(1, model.width // 2)
        self.up = nn.Parameter(torch.empty(self.hidden, model.width))
        self.down = nn.Parameter(torch.empty(1, self.hidden))

    def initialise(self, seed: int) -> None:
        normal_(self.up, seed, f"layers.{self.layer}.predictor.up")
        normal_(self.down, seed, f"layers.{self.layer}.predictor.down")

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return logits (B, T)."""
        x_BTD = F.rms_norm(x_BTD.detach(), x_BTD.shape[-1:])
        with component("predictor", self.layer):
            return score(F.gelu(F.linear(x_BTD, self.up)), self.down).squeeze(-1)

    def ledger(self, workload: Workload) -> Ledger:
        rows = workload.slots
        layer = self.layer
        learns = self.up.requires_grad
        return weight_ledger(
            workload, layer, "predictor", self.up, rows, input_gradient=False
        ) + weight_ledger(workload, layer, "predictor", self.down, rows, input_gradient=learns)
