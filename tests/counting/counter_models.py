"""Small models for the counter's cases, each written the way such code is written in the wild.

B sequences, T tokens, D model width, H heads, P width of a head, F hidden width, E experts, K chosen,
N rows, C slots of an expert, V vocabulary.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Call(nn.Module):
    """A function as a module, for the tools that take nothing else."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


@torch.library.custom_op("counter_cases::hidden_matmul", mutates_args=())
def hidden_matmul(x: Tensor, y: Tensor) -> Tensor:
    """A matmul inside an op without a formula."""
    return x @ y


@hidden_matmul.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[1])


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with a ReLU between them."""
    layers: list[nn.Module] = []
    for inner, columns in pairwise(widths):
        layers += [nn.Linear(inner, columns), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def compiled(module: nn.Module, backend: str) -> nn.Module:
    """``module``, compiled in place: it stays a module for tools that hook or trace one."""
    module.compile(backend=backend)
    return module


def written_attention(q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor) -> Tensor:
    """Attention as matmuls."""
    return (q_BHTP @ k_BHTP.transpose(-1, -2)).softmax(-1) @ v_BHTP


def einsum_attention(q_BTHP: Tensor, k_BTHP: Tensor, v_BTHP: Tensor) -> Tensor:
    scores_BHTS = torch.einsum("bthp,bshp->bhts", q_BTHP, k_BTHP).softmax(-1)
    return torch.einsum("bhts,bshp->bthp", scores_BHTS, v_BTHP)


class LoopExperts(nn.Module):
    """Token choice as most code has it: a loop over experts that gathers, computes and adds back.
    ``chosen_NK`` fixes the choice, so that its counts are known."""

    def __init__(self, width: int, hidden: int, experts: int, chosen_NK: Tensor | None, top_k: int = 2):
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(mlp(width, hidden, width) for _ in range(experts))
        self.chosen_NK, self.top_k = chosen_NK, top_k

    def forward(self, x_ND: Tensor) -> Tensor:
        gates_NE = self.gate(x_ND).softmax(-1)
        chosen_NK = self.chosen_NK if self.chosen_NK is not None else gates_NE.topk(self.top_k).indices
        out_ND = torch.zeros_like(x_ND)
        for number, expert in enumerate(self.experts):
            rows, _ = (chosen_NK == number).nonzero(as_tuple=True)
            y_ND = expert(x_ND[rows]) * gates_NE[rows, number, None]
            out_ND = out_ND.index_add(0, rows, y_ND.to(out_ND.dtype))
        return out_ND


class OneHotExperts(nn.Module):
    """Dispatch and combine as einsums with a one-hot tensor (GShard, Switch)."""

    def __init__(self, width: int, hidden: int, experts: int, slots: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, width))
        self.slots = slots

    def forward(self, x_ND: Tensor) -> Tensor:
        gates_NE = self.gate(x_ND).softmax(-1)
        one_hot_NE = F.one_hot(gates_NE.argmax(-1), gates_NE.shape[-1])
        place_NE = (one_hot_NE.cumsum(0) - 1).clamp(max=self.slots) * one_hot_NE
        slot_NEC = F.one_hot(place_NE, self.slots + 1)[..., :-1] * one_hot_NE[..., None]
        dispatch_NEC = slot_NEC.to(x_ND.dtype)
        x_ECD = torch.einsum("nec,nd->ecd", dispatch_NEC, x_ND)
        hidden_ECF = torch.einsum("ecd,edf->ecf", x_ECD, self.up).relu()
        y_ECD = torch.einsum("ecf,efd->ecd", hidden_ECF, self.down)
        return torch.einsum("nec,ecd->nd", dispatch_NEC * gates_NE[..., None], y_ECD)


class ExpertChoice(nn.Module):
    """Each expert takes its best rows; one bmm for all experts."""

    def __init__(self, width: int, hidden: int, experts: int, slots: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, width))
        self.slots = slots

    def forward(self, x_ND: Tensor) -> Tensor:
        gates_EC, rows_EC = self.gate(x_ND).softmax(-1).T.topk(self.slots)
        y_ECD = torch.bmm(torch.bmm(x_ND[rows_EC], self.up).relu(), self.down) * gates_EC[..., None]
        return torch.zeros_like(x_ND).index_add(0, rows_EC.flatten(), y_ECD.flatten(0, 1))


class GroupedExperts(nn.Module):
    """Rows sorted by expert through `torch.nn.functional.grouped_mm`; ``ends_E``: where groups end."""

    ends_E: Tensor

    def __init__(self, width: int, hidden: int, ends: list[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(len(ends), width, hidden, dtype=dtype))
        self.down = nn.Parameter(torch.randn(len(ends), hidden, width, dtype=dtype))
        self.register_buffer("ends_E", torch.tensor(ends, dtype=torch.int32))

    def forward(self, x_ND: Tensor) -> Tensor:
        hidden_NF = F.grouped_mm(x_ND, self.up, offs=self.ends_E).relu()
        return F.grouped_mm(hidden_NF, self.down, offs=self.ends_E)


class Attention(nn.Module):
    """Causal self-attention with grouped keys, and a cache that grows by what it is given."""

    def __init__(self, width: int, heads: int, kv_heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x_BTD: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        heads_BHTP = self.qkv(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        q_BHTP, k_BKTP, v_BKTP = heads_BHTP.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if cache:
            k_BKTP, v_BKTP = torch.cat((cache[0], k_BKTP), 2), torch.cat((cache[1], v_BKTP), 2)
        if cache is not None:
            cache[:] = [k_BKTP, v_BKTP]
        first = int(x_BTD.shape[1]) == int(k_BKTP.shape[2])  # a size is a tensor while torch.jit traces
        y_BHTP = F.scaled_dot_product_attention(
            q_BHTP,
            k_BKTP,
            v_BKTP,
            is_causal=first,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(y_BHTP.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Rows(nn.Module):
    """A module over rows, applied to sequences."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.inner(x_BTD.flatten(0, 1)).view_as(x_BTD)


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, norm: type[nn.Module], width: int, attention: nn.Module, feed: nn.Module) -> None:
        super().__init__()
        self.first, self.second = norm(width), norm(width)
        self.attention, self.feed = attention, feed

    def forward(self, x_BTD: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.first(x_BTD), cache)
        return x_BTD + self.feed(self.second(x_BTD))


class Stack(nn.Module):
    """A language model: embedding, blocks, norm, head. With ``new`` > 0 the tokens' last ``new`` are
    read one at a time through a cache, after the others at once."""

    def __init__(self, vocabulary: int, width: int, blocks: list[Block], new: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = type(blocks[0].first)(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.new = new

    def forward(self, tokens_BT: Tensor) -> Tensor:
        if not self.new:
            return self.read(tokens_BT, [None] * len(self.blocks))
        prompt = tokens_BT.shape[1] - self.new
        caches: list[list[Tensor]] = [[] for _ in self.blocks]
        pieces = [tokens_BT[:, :prompt], *tokens_BT[:, prompt:].split(1, dim=1)]
        return torch.cat([self.read(piece, caches) for piece in pieces], dim=1)

    def read(self, tokens_BT: Tensor, caches: list) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BTD = block(x_BTD, cache)
        return self.head(self.norm(x_BTD))


class DepthRouted(nn.Module):
    """A block that only the best ``kept`` tokens enter; or, ``masked``, that computes all of them and
    throws the others' results away, as some ports do."""

    def __init__(self, width: int, block: Block, kept: int, masked: bool) -> None:
        super().__init__()
        self.router = nn.Linear(width, 1, bias=False)
        self.block, self.kept, self.masked = block, kept, masked

    def forward(self, x_BTD: Tensor) -> Tensor:
        scores_BT = self.router(x_BTD).squeeze(-1)
        index_BKD = (
            scores_BT.topk(self.kept).indices.sort().values[..., None].expand(-1, -1, len(x_BTD[0, 0]))
        )
        if self.masked:
            mask_BTD = torch.zeros_like(x_BTD).scatter(1, index_BKD, 1.0)
            return x_BTD + mask_BTD * scores_BT[..., None] * (self.block(x_BTD) - x_BTD)
        x_BKD = x_BTD.gather(1, index_BKD)
        weight_BK1 = scores_BT[..., None].gather(1, index_BKD[..., :1])
        return x_BTD.scatter_add(1, index_BKD, (self.block(x_BKD) - x_BKD) * weight_BK1)
