"""The plain pre-norm block that every scheme wraps or changes: attention, then a feed-forward part.

B sequences, T tokens, D model width, H heads, K key/value heads, P width of a head, F hidden width.
RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al. 2021, equation 34), grouped-query
attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.ledger import Counts, Ledger, Workload, attention, component, matmul
from modbench.ledger.cpu_attention import OWN_BLOCK
from modbench.model.causal_attention import (
    causal_attention,
    first_keys,
    mask_device,
    newest_attention,
    whole_keys,
)
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decode_graphs import NewTokens, Outputs
from modbench.model.init import normal_, residual_scale
from modbench.model.kernels import RMSNorm, angles, rotate, swiglu, widened
from modbench.model.layer import Layer, with_upstream_grad
from modbench.model.linear import Linear


class Attention(nn.Module):
    """Causal self-attention over the tokens it is given, at the positions they are said to have.

    Padding stands on the right, so a real token never sees it.
    """

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.heads, self.key_heads, self.head_width = model.heads, model.key_heads, model.head_width
        self.qkv = Linear(model.width, (self.heads + 2 * self.key_heads) * self.head_width)
        self.out = Linear(model.width, model.width)

    def initialise(self, seed: int) -> None:
        normal_(self.qkv.weight, seed, f"layers.{self.layer}.attention.qkv")
        normal_(
            self.out.weight,
            seed,
            f"layers.{self.layer}.attention.out",
            scale=residual_scale(self.model.layers),
        )

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        q_BHTP, k_BKTP, v_BKTP = self._projected(x_BTD, self._rotation(x_BTD, context))
        k_BKCP, v_BKCP, past = self._remembered(x_BTD, k_BKTP, v_BKTP, context)
        with component("attention.scores", self.layer):
            if context.segments:
                y_BHTP = _apart(q_BHTP, k_BKCP, v_BKCP, context.segments)
            elif not any(past):
                y_BHTP = causal_attention(q_BHTP, k_BKCP, v_BKCP)
            elif x_BTD.shape[1] == 1:
                y_BHTP = newest_attention(q_BHTP, k_BKCP, v_BKCP, [length + 1 for length in past])
            else:
                y_BHTP = F.scaled_dot_product_attention(
                    q_BHTP,
                    k_BKCP,
                    v_BKCP,
                    attn_mask=self._seen(x_BTD, k_BKCP, past, context),
                    enable_gqa=self.key_heads != self.heads,
                )
        return self._out(y_BHTP)

    def one_token(self, x_R1D: Tensor, new: NewTokens) -> Tensor:
        """`forward` of one new token of R sequences, as `modbench.model.decode_graphs` records it: over
        a span of keys and values that does not move, of which a mask tells who is there."""
        rows_R, past_R = new.places_2R
        q_RH1P, k_RK1P, v_RK1P = self._projected(x_R1D, self._angles(x_R1D, new.positions_R1))
        tokens = new.k_BKCP.shape[2]
        seen_R11C = torch.arange(tokens, device=x_R1D.device) <= past_R[:, None, None, None]
        for stored_BKCP, new_RK1P in ((new.k_BKCP, k_RK1P), (new.v_BKCP, v_RK1P)):
            stored_BKCP[rows_R, :, past_R] = new_RK1P[:, :, 0]
        with component("attention.scores", self.layer):
            y_RH1P = F.scaled_dot_product_attention(
                q_RH1P,
                new.k_BKCP if new.all_sequences else new.k_BKCP.index_select(0, rows_R),
                new.v_BKCP if new.all_sequences else new.v_BKCP.index_select(0, rows_R),
                attn_mask=seen_R11C,
                enable_gqa=self.key_heads != self.heads,
            )
        return self._out(y_RH1P)

    def ledger(self, workload: Workload) -> Ledger:
        rows, width = workload.slots, self.model.width
        projected = with_upstream_grad(workload, self.qkv)
        return (
            matmul(
                workload,
                self.layer,
                "attention.qkv",
                rows=rows,
                inner=width,
                columns=(self.heads + 2 * self.key_heads) * self.head_width,
                weight_gradient=self.qkv.weight.requires_grad,
            )
            + attention(
                projected,
                self.layer,
                heads=self.heads,
                head_width=self.head_width,
                block=OWN_BLOCK,
            )
            + matmul(
                projected,
                self.layer,
                "attention.out",
                rows=rows,
                inner=width,
                columns=width,
                weight_gradient=self.out.weight.requires_grad,
            )
        )

    def _projected(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, P), keys and values (B, K, T, P)."""
        with component("attention.qkv", self.layer):
            qkv_BTC = self.qkv(x_BTD)
        parts_BTCP = qkv_BTC.unflatten(-1, (-1, self.head_width))
        if torch.compiler.is_compiling():
            # Gradients of queries and keys that go together would have to be put together first.
            sizes = (self.heads, self.key_heads, self.key_heads)
            q_BTHP, k_BTKP, v_BTKP = parts_BTCP.split(sizes, dim=2)
            q_BTHP, k_BTKP = (rotate(part, *rotation) for part in (q_BTHP, k_BTKP))
            return q_BTHP.transpose(1, 2), k_BTKP.transpose(1, 2), v_BTKP.transpose(1, 2)
        qk_BTCP, v_BTKP = parts_BTCP.split((self.heads + self.key_heads, self.key_heads), dim=2)
        qk_BCTP = rotate(qk_BTCP, *rotation).transpose(1, 2)
        q_BHTP, k_BKTP = qk_BCTP.split((self.heads, self.key_heads), dim=1)
        return q_BHTP, k_BKTP, v_BTKP.transpose(1, 2)

    def _out(self, y_BHTP: Tensor) -> Tensor:
        with component("attention.out", self.layer):
            return self.out(y_BHTP.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _remembered(
        self, x_BTD: Tensor, k_BKTP: Tensor, v_BKTP: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, list[int]]:
        """The keys and values to attend to, and how many of each sequence came before these tokens."""
        cache = context.cache
        if cache is None:
            return k_BKTP, v_BKTP, []
        if context.segments:
            cache.begin(self.layer, k_BKTP, v_BKTP, context.segments, context.rows)
            return k_BKTP, v_BKTP, []
        past, new = cache.lengths(self.layer, context.rows), context.lengths(x_BTD)
        newest = x_BTD.shape[1] == 1 and any(past)
        whole = whole_keys(k_BKTP, self.heads, max(past) + 1) if newest else 1
        k_BKCP, v_BKCP = cache.extend(self.layer, k_BKTP, v_BKTP, new, context.rows, whole=whole)
        return (k_BKCP, v_BKCP, past) if any(past) else (k_BKTP, v_BKTP, past)

    def _seen(self, x_BTD: Tensor, k_BKCP: Tensor, past: list[int], context: Context) -> Tensor:
        """Which keys each token sees, (B, 1, T, C): those that came before it, and its own."""
        on = mask_device(x_BTD)
        past_B11, new_B11 = (
            torch.tensor(n, device=on)[:, None, None] for n in (past, context.lengths(x_BTD))
        )
        token_T1 = torch.arange(x_BTD.shape[1], device=on)[:, None]
        seen_BT1 = past_B11 + torch.minimum(token_T1 + 1, new_B11)
        return first_keys(seen_BT1, k_BKCP.shape[2], x_BTD)

    def _rotation(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            # For a backward pass each layer keeps its own: plans reckon with it.
            return self._angles(x_BTD, context.positions_BT)
        tokens = x_BTD.shape[1] if context.positions_BT is None else None
        key = ("rotation", tokens, self.head_width, self.model.rope_base, x_BTD.device)
        return context.once(key, lambda: self._turning(x_BTD, context))

    def _turning(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The angles of the tokens that these were gathered from, if these are all known; else made
        here."""
        outer, gather = context.outer, context.gather
        if outer is None or gather is None or outer.positions_BT is None:
            return widened(*self._angles(x_BTD, context.positions_BT))
        cos_BT1P, sin_BT1P = self._rotation(x_BTD, outer)
        return gather(cos_BT1P), gather(sin_BT1P)

    def _angles(self, x_BTD: Tensor, positions_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Their cosines and sines, (B, T, 1, P/2), or (1, T, 1, P/2) of positions 0..T-1."""
        if positions_BT is None:
            positions_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        return angles(positions_BT, self.head_width // 2, self.model.rope_base)


def _replays(x_BTD: Tensor, context: Context) -> bool:
    """Whether it is one token of each sequence, and blocks replay what they do with one: that is
    recorded without autocast and without a gradient."""
    cache = context.cache
    if cache is None or cache.graphs is None or x_BTD.shape[1] != 1 or context.segments:
        return False
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled(x_BTD.device.type))


def _apart(q_1HSP: Tensor, k_1KSP: Tensor, v_1KSP: Tensor, segments: Sequence[int]) -> Tensor:
    """Causal attention of sequences that lie in one row, one after another, each by itself."""
    parts = zip(*(t.split(list(segments), dim=2) for t in (q_1HSP, k_1KSP, v_1KSP)), strict=True)
    return torch.cat([causal_attention(*part) for part in parts], dim=2)


class FeedForward(nn.Module, ABC):
    """What stands after attention in a block: a dense MLP, or experts. ``has_data_dependent_shapes`` as
    `modbench.model.layer.Layer`."""

    has_data_dependent_shapes = False

    @abstractmethod
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """What it adds to the residual stream, (B, T, D), from the normalised stream."""

    @abstractmethod
    def ledger(self, workload: Workload) -> Ledger:
        """The closed form of ``forward``."""

    def nominal_counts(self, workload: Workload) -> Counts:
        """As `modbench.model.layer.Layer.nominal_counts`."""
        return {}

    def active_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class MLP(FeedForward):
    """SwiGLU: down(silu(gate x) * up x), gate and up in one matmul; or GELU: down(gelu(up x))."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.up = Linear(model.width, up_columns(model, model.hidden))
        self.down = Linear(model.hidden, model.width)

    def initialise(self, seed: int) -> None:
        normal_(self.up.weight, seed, f"layers.{self.layer}.mlp.up")
        normal_(
            self.down.weight,
            seed,
            f"layers.{self.layer}.mlp.down",
            scale=residual_scale(self.model.layers),
        )

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("mlp", self.layer):
            return self.down(activate(self.up(x_BTD), self.model.mlp))

    def ledger(self, workload: Workload) -> Ledger:
        rows, width, hidden = workload.slots, self.model.width, self.model.hidden
        return matmul(
            workload,
            self.layer,
            "mlp",
            rows=rows,
            inner=width,
            columns=up_columns(self.model, hidden),
            weight_gradient=self.up.weight.requires_grad,
        ) + matmul(
            with_upstream_grad(workload, self.up),
            self.layer,
            "mlp",
            rows=rows,
            inner=hidden,
            columns=width,
            weight_gradient=self.down.weight.requires_grad,
        )


def up_columns(model: ModelConfig, hidden: int) -> int:
    """Columns of the matmul into a hidden layer of width ``hidden``: SwiGLU needs gate and up."""
    return 2 * hidden if model.mlp == "swiglu" else hidden


def activate(up: Tensor, mlp: str) -> Tensor:
    """The hidden layer from the matmul into it, (..., 2F) -> (..., F) or (..., F) -> (..., F)."""
    return swiglu(up) if mlp == "swiglu" else F.gelu(up)


class Block(Layer):
    """A pre-norm block. ``feed_forward`` replaces its dense MLP."""

    def __init__(self, model: ModelConfig, layer: int, feed_forward: FeedForward | None = None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.width, eps=model.norm_epsilon)
        self.attention = Attention(model, layer)
        self.feed_forward_norm = RMSNorm(model.width, eps=model.norm_epsilon)
        self.feed_forward = feed_forward if feed_forward is not None else MLP(model, layer)

    @property
    def has_data_dependent_shapes(self) -> bool:  # type: ignore[override]
        return self.feed_forward.has_data_dependent_shapes

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if _replays(x_BTD, context):
            return self._replayed(x_BTD, context, adds=True)
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD), context)

    def delta(self, x_BTD: Tensor, context: Context) -> Tensor:
        """What the block adds to the residual stream: ``forward(x) - x`` without the rounding of the
        subtraction."""
        if _replays(x_BTD, context):
            return self._replayed(x_BTD, context, adds=False)
        attended_BTD = self.attention(self.attention_norm(x_BTD), context)
        middle_BTD = x_BTD + attended_BTD
        return attended_BTD + self.feed_forward(self.feed_forward_norm(middle_BTD), context)

    def one_token(self, x_R1D: Tensor, new: NewTokens, *, adds: bool) -> Outputs:
        """With a dense MLP all of it; else what experts' output is added to, and what they are given."""
        attended_R1D = self.attention.one_token(self.attention_norm(x_R1D), new)
        middle_R1D = x_R1D + attended_R1D
        normed_R1D = self.feed_forward_norm(middle_R1D)
        before_R1D = middle_R1D if adds else attended_R1D
        if not isinstance(self.feed_forward, MLP):
            return before_R1D, normed_R1D
        return (before_R1D + self.feed_forward(normed_R1D, Context()),)

    def _replayed(self, x_R1D: Tensor, context: Context, *, adds: bool) -> Tensor:
        cache, model, layer = context.cache, self.attention.model, self.attention.layer
        assert cache is not None
        assert cache.graphs is not None
        graphs, k_1K1P = cache.graphs, x_R1D.new_empty(1, model.key_heads, 1, model.head_width)
        made = cache.one_more(
            layer,
            k_1K1P,
            context.rows,
            lambda kept: graphs.run(self, x_R1D, context, kept, layer=layer, adds=adds),
        )
        if len(made) == 1:
            return made[0]
        before_R1D, normed_R1D = made
        return before_R1D + self.feed_forward(normed_R1D, context)  # type: ignore[no-any-return]

    def ledger(self, workload: Workload) -> Ledger:
        workload = with_upstream_grad(workload, self.attention_norm)
        middle = with_upstream_grad(with_upstream_grad(workload, self.attention), self.feed_forward_norm)
        return self.attention.ledger(workload) + self.feed_forward.ledger(middle)

    def nominal_counts(self, workload: Workload) -> Counts:
        return self.feed_forward.nominal_counts(workload)

    def active_parameters(self) -> int:
        everything = sum(parameter.numel() for parameter in self.parameters())
        idle = sum(parameter.numel() for parameter in self.feed_forward.parameters())
        return everything - idle + self.feed_forward.active_parameters()
