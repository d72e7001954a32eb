"""Causal self-attention with grouped key/value heads (Ainslie et al. 2023) and rotary positions (Su et
al. 2021, section 3.4.2).

B sequences, T tokens, C cached and new tokens, D model width, H heads, K key/value heads, P width of a
head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.counting.attention import without_values
from modbench.ledger import Ledger, Workload, attention, component
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_, residual_scale
from modbench.model.layer import weight_ledger, with_upstream_grad


class Attention(nn.Module):
    """Causal attention among the tokens it is given, at the positions that the context names.

    Padding is on the right, so that no real token attends to it. PyTorch's fused attention kernels have
    no second derivative: to differentiate twice, run the model under
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.heads, self.key_heads, self.head_width = model.heads, model.key_heads, model.head_width
        columns = (self.heads + 2 * self.key_heads) * self.head_width
        self.qkv = nn.Linear(model.width, columns, bias=False)
        self.out = nn.Linear(model.width, model.width, bias=False)
        if model.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_width, eps=model.norm_epsilon)
            self.k_norm = nn.RMSNorm(self.head_width, eps=model.norm_epsilon)

    def initialise(self, seed: int) -> None:
        name = f"layers.{self.layer}.attention"
        scale = residual_scale(self.model.layers)
        normal_(self.qkv.weight, seed, f"{name}.qkv")
        normal_(self.out.weight, seed, f"{name}.out", scale=scale)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Return the attention output of the normalised stream ``x_BTD``, (B, T, D)."""
        q_BHTP, k_BKTP, v_BKTP = self._project(x_BTD, context.positions_BT)
        grouped = self.key_heads != self.heads
        mask_B1TC = None
        past = [0]
        if context.cache is not None:
            past = context.cache.lengths(self.layer, context.rows)
            new = context.lengths(x_BTD)
            k_BKCP, v_BKCP = context.cache.extend(self.layer, k_BKTP, v_BKTP, new, context.rows)
            if any(past):
                k_BKTP, v_BKTP = k_BKCP, v_BKCP
                mask_B1TC = _mask(past, new, q_BHTP, k_BKCP)
        with component("attention.scores", self.layer):
            y_BHTP = F.scaled_dot_product_attention(
                q_BHTP, k_BKTP, v_BKTP, attn_mask=mask_B1TC, is_causal=not any(past), enable_gqa=grouped
            )
        with component("attention.out", self.layer):
            return self.out(y_BHTP.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def ledger(self, workload: Workload) -> Ledger:
        """Return the closed form of `forward` for ``workload``."""
        rows = workload.slots
        projected = with_upstream_grad(workload, self.qkv)
        if self.model.qk_norm:
            projected = with_upstream_grad(with_upstream_grad(projected, self.q_norm), self.k_norm)
        return (
            weight_ledger(workload, self.layer, "attention.qkv", self.qkv.weight, rows)
            + attention(projected, self.layer, heads=self.heads, head_width=self.head_width)
            + weight_ledger(projected, self.layer, "attention.out", self.out.weight, rows)
        )

    def _project(self, x_BTD: Tensor, positions_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries (B, H, T, P), rotated keys and values (B, K, T, P)."""
        with component("attention.qkv", self.layer):
            qkv_BTC = self.qkv(x_BTD)
        heads_BTCP = qkv_BTC.unflatten(-1, (-1, self.head_width))
        qk_BTCP, v_BTKP = heads_BTCP.split((self.heads + self.key_heads, self.key_heads), dim=2)
        if self.model.qk_norm:
            q_BTHP, k_BTKP = qk_BTCP.to(self.q_norm.weight.dtype).split((self.heads, self.key_heads), 2)
            qk_BTCP = torch.cat((self.q_norm(q_BTHP), self.k_norm(k_BTKP)), 2).to(qk_BTCP.dtype)
        if positions_BT is None:
            positions_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        angles = rotary_angles(positions_BT, self.head_width, self.model.rope_base)
        qk_BCTP = rotate(qk_BTCP, *angles).transpose(1, 2)
        q_BHTP, k_BKTP = qk_BCTP.split((self.heads, self.key_heads), dim=1)
        return q_BHTP, k_BKTP, v_BTKP.transpose(1, 2)


def _mask(past: Sequence[int], new: Sequence[int], q_BHTP: Tensor, k_BKCP: Tensor) -> Tensor | None:
    """Return which keys each new token attends to, (B, 1, T, C) bool: the cached ones of its sequence
    and the new ones up to itself. None: all of them. A mask on the meta device keeps the number of its
    pairs, so that they can be counted there."""
    tokens, keys = q_BHTP.shape[2], k_BKCP.shape[2]
    if tokens == 1 and min(past) == max(past):
        return None
    on = torch.device("cpu") if q_BHTP.is_meta else q_BHTP.device
    past_B11, new_B11 = (torch.tensor(list(n), device=on)[:, None, None] for n in (past, new))
    token_T1 = torch.arange(tokens, device=on)[:, None]
    seen_BT1 = past_B11 + torch.minimum(token_T1 + 1, new_B11)
    mask_B1TC = (torch.arange(keys, device=on) < seen_BT1)[:, None]
    return without_values(mask_B1TC) if q_BHTP.is_meta else mask_B1TC


def rotary_angles(positions_BT: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (B, T, 1, P/2) each, of position * base^(-2i / P) for the pairs i of a
    head of width P (equation 15), in float32."""
    half = width // 2
    exponents = torch.arange(half, device=positions_BT.device, dtype=torch.float32) / half
    angles_BT1P = positions_BT[:, :, None, None].to(torch.float32) * base**-exponents
    return angles_BT1P.cos(), angles_BT1P.sin()


def rotate(x_BTHP: Tensor, cos_BT1P: Tensor, sin_BT1P: Tensor) -> Tensor:
    """Rotate the pairs (i, i + P/2) of each head by its token's angles (equation 34), in float32 or
    wider; the result has the dtype of ``x_BTHP``."""
    first, second = x_BTHP.to(torch.promote_types(x_BTHP.dtype, cos_BT1P.dtype)).chunk(2, dim=-1)
    rotated = (first * cos_BT1P - second * sin_BT1P, second * cos_BT1P + first * sin_BT1P)
    return torch.cat(rotated, dim=-1).to(x_BTHP.dtype)
