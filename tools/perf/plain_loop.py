"""The dense model and its training step as one writes them without modbench: modules, autocast, stock
AdamW, cross-entropy on all logits. What modbench's own step is timed against.

B sequences, T tokens, D model width, H heads, P width of a head, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.model.config import ModelConfig


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class PlainAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
        batch, tokens, width = x_BTD.shape
        q, k, v = (
            projection(x_BTD).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        q = q * cos_TP + rotate_half(q) * sin_TP
        k = k * cos_TP + rotate_half(k) * sin_TP
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class PlainMLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class PlainBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = PlainAttention(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.mlp = PlainMLP(config)

    def forward(self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TP, sin_TP)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class PlainDecoder(nn.Module):
    """The dense decoder of shape ``config``: SwiGLU, a tied head, as many key/value heads as heads."""

    cos_TP: Tensor
    sin_TP: Tensor

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        super().__init__()
        assert config.mlp == "swiglu"
        assert config.tied_head
        assert config.kv_heads == config.heads
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        half = config.head_width // 2
        frequencies = config.rope_base ** (-torch.arange(half) / half)
        angles_TP = torch.outer(torch.arange(tokens).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos_TP", angles_TP.cos())
        self.register_buffer("sin_TP", angles_TP.sin())

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos_TP, self.sin_TP)
        return self.head(self.norm(x_BTD))


class PlainLoop:
    """The model in training: called with a batch, it takes a step and gives the loss."""

    def __init__(
        self,
        config: ModelConfig,
        tokens: int,
        dtype: torch.dtype,
        on: torch.device | str = "cpu",
        learning_rate: float = 3e-3,
    ) -> None:
        self.model = PlainDecoder(config, tokens).to(on)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate)
        self.dtype, self.on = dtype, torch.device(on)

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        mixed = self.dtype != torch.float32
        with torch.autocast(self.on.type, dtype=torch.bfloat16, enabled=mixed):
            logits_BTV = self.model(inputs_BT)
        logits_NV = logits_BTV.float().view(-1, logits_BTV.shape[-1])
        loss = F.cross_entropy(logits_NV, targets_BT.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()
