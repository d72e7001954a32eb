"""Causal attention on a CPU, out of matmuls: queries block by block, each with the keys up to the
block's end. PyTorch's own kernel there multiplies in small tiles and, at a length of 512, the whole
square of query-key pairs.

Scores are recomputed in the backward pass, as fused kernels do (FlashAttention, Dao et al. 2022, section
3.1), so that no more than a block of them is ever held. They have the dtype of the queries, softmax is
computed in float32 or wider. Differentiable once. The plain twin is `scaled_dot_product_attention`.

`newest_attention` is that of the newest token of each sequence to all that a cache keeps. Of many keys
PyTorch's own kernel takes longer there on some processors (`modbench.model.processor`), in bfloat16
twice as long and more with grouped heads; on others, half as long (`nox -s perf`, "attention of the
newest token over PyTorch's").

Where scores have a dtype of few digits, sharp attention comes out less exact than from PyTorch's kernel,
which keeps them in float32.

B sequences, R of them at a time, T tokens, H heads, K key/value heads, G heads to each of these, P width
of a head; Q queries of a block, E keys up to its end.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from modbench.counting.attention import Pairs, causal_pairs, without_values
from modbench.ledger.cpu_attention import OWN_BLOCK
from modbench.ledger.labels import attending
from modbench.model import processor
from modbench.model.grouped import ROWS
from modbench.model.kernels import as_it_is

#: A CPU's bfloat16 matmuls are made anew for each number of keys, which takes several times as long as
#: running them: of what a cache keeps they take a multiple of this.
KEYS = 64
#: Numbers of keys that the newest tokens' heads meet, from which on matmuls are faster than PyTorch's
#: kernel, where that is slow; of other dtypes as in float32.
MANY = {torch.float32: 2**21, torch.bfloat16: 2**18}
#: Scores of a block that are held at a time, if one sequence has no more: few enough to stay in a cache.
SCORES = 2**21


def causal_attention(q_BHTP: Tensor, k_BKTP: Tensor, v_BKTP: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(P)) v over the keys up to each query's own, (B, H, T, P) (Vaswani et al.
    2017, equation 1), in memory that lies as (B, T, H, P)."""
    given = (q_BHTP, k_BKTP, v_BKTP)
    if has_torch_function(given):  # what watches or replaces torch's functions sees this one, too
        return handle_torch_function(causal_attention, given, *given)  # type: ignore[no-any-return]
    if q_BHTP.device.type in ("cpu", "meta") and not _torchs(q_BHTP, k_BKTP, v_BKTP):
        dtype = q_BHTP.dtype
        if dtype == torch.bfloat16 and q_BHTP.shape[2] % ROWS:  # see `modbench.model.linear`
            given = q_BHTP.float(), k_BKTP.float(), v_BKTP.float()
        if torch.compiler.is_compiling():
            # The program lays them out so while it makes them; else each pass would.
            return _attended(*(tensor.contiguous() for tensor in given)).to(dtype)
        return _CausalAttention.apply(*given).to(dtype)  # type: ignore[no-any-return, no-untyped-call]
    grouped = bool(k_BKTP.shape[1] != q_BHTP.shape[1])  # sizes are tensors while torch.jit traces
    return F.scaled_dot_product_attention(q_BHTP, k_BKTP, v_BKTP, is_causal=True, enable_gqa=grouped)


def newest_attention(
    q_BH1P: Tensor,
    k_BKCP: Tensor,
    v_BKCP: Tensor,
    seen: Sequence[int],
    *,
    by_matmuls: bool | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(P)) v of one query of each sequence over the first ``seen[b]`` of the C keys
    and values, (B, H, 1, P); what others are must be numbers. ``by_matmuls``: whether out of matmuls;
    None: in the way that is the faster one."""
    sequences, heads, _, width = q_BH1P.shape
    key_heads, keys = k_BKCP.shape[1:3]
    if by_matmuls is None:
        by_matmuls = _by_matmuls(q_BH1P, heads, keys)
    seen_B11C = None
    if min(seen) < keys:
        seen_B11C = first_keys(
            torch.tensor(seen, device=mask_device(q_BH1P))[:, None, None], keys, q_BH1P
        )
    if not by_matmuls:
        return F.scaled_dot_product_attention(
            q_BH1P, k_BKCP, v_BKCP, attn_mask=seen_B11C, enable_gqa=key_heads != heads
        )
    q_NGP = (q_BH1P * width**-0.5).reshape(sequences * key_heads, -1, width)
    k_NCP, v_NCP = k_BKCP.flatten(0, 1), v_BKCP.flatten(0, 1)
    with attending(Pairs(sum(seen), sequences * keys)):
        # The keys on the left: kernels are made for many rows.
        scores_NGC = torch.bmm(k_NCP, q_NGP.transpose(1, 2)).transpose(1, 2)
        if seen_B11C is not None:
            scores_NGC.unflatten(0, (sequences, key_heads)).masked_fill_(~seen_B11C, -torch.inf)
        y_NGP = torch.bmm(scores_NGC.softmax(-1), v_NCP)
    return y_NGP.reshape(sequences, heads, 1, width)


def whole_keys(k_BK1P: Tensor, heads: int, keys: int) -> int:
    """A multiple of so many keys had better be given to `newest_attention` of queries with ``heads`` and
    keys like ``k_BK1P``, of which there are ``keys``. Who counts is given no more than there are."""
    made_anew = k_BK1P.is_cpu and k_BK1P.dtype == torch.bfloat16 and not is_in_torch_dispatch_mode()
    return KEYS if made_anew and _by_matmuls(k_BK1P, heads, keys) else 1


def _by_matmuls(like_BH1P: Tensor, heads: int, keys: int) -> bool:
    """Whether matmuls are the faster way."""
    if like_BH1P.device.type not in ("cpu", "meta") or torch.jit.is_tracing():
        return False
    if not processor.SLOW_FEW:
        return False
    many = MANY.get(like_BH1P.dtype, MANY[torch.float32])
    return like_BH1P.shape[0] * heads * keys * like_BH1P.shape[-1] >= many


def first_keys(seen_BT1: Tensor, keys: int, like: Tensor) -> Tensor:
    """The first ``seen_BT1`` of so many ``keys``, a mask (B, 1, T, C) for queries ``like`` these."""
    mask_B1TC = (torch.arange(keys, device=seen_BT1.device) < seen_BT1)[:, None]
    return without_values(mask_B1TC) if like.is_meta else mask_B1TC


def mask_device(like: Tensor) -> torch.device:
    """Where masks for tensors ``like`` this are reckoned: of those on the meta device on a CPU, for they
    remember how much they let through."""
    return torch.device("cpu") if like.is_meta else like.device


def _torchs(*given: Tensor) -> bool:
    """Whether PyTorch's own kernel is the faster one. Of a single block both compute the whole square;
    there it is, but for a gradient in bfloat16, if the matmuls of this length are not to be made first
    (see `modbench.model.linear`)."""
    tokens, dtype = given[0].shape[2], given[0].dtype
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return tokens <= OWN_BLOCK and not (dtype == torch.bfloat16 and learns and tokens % ROWS == 0)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHTP: Tensor, k_BKTP: Tensor, v_BKTP: Tensor) -> Tensor:
        ctx.save_for_backward(q_BHTP, k_BKTP, v_BKTP)
        return _forward(q_BHTP, k_BKTP, v_BKTP)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHTP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = ctx.saved_tensors
        of_q, of_k, of_v = map(_like, given)
        _gradients(gradient_BHTP, *given, of_q, of_k, of_v)
        return of_q, of_k, of_v


@torch.library.custom_op("modbench::causal_attention", mutates_args=())
def _attended(q_BHTP: Tensor, k_BKTP: Tensor, v_BKTP: Tensor) -> Tensor:
    """For torch.compile, which takes it as one op."""
    return _forward(q_BHTP, k_BKTP, v_BKTP)


@_attended.register_fake
def _(q_BHTP: Tensor, k_BKTP: Tensor, v_BKTP: Tensor) -> Tensor:
    return _like(q_BHTP)


@torch.library.custom_op("modbench::causal_attention_backward", mutates_args=())
def _attended_backward(
    gradient_BHTP: Tensor, q_BHTP: Tensor, k_BKTP: Tensor, v_BKTP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_q, of_k, of_v = map(torch.empty_like, (q_BHTP, k_BKTP, v_BKTP))
    _gradients(gradient_BHTP, q_BHTP, k_BKTP, v_BKTP, of_q, of_k, of_v)
    return of_q, of_k, of_v


@_attended_backward.register_fake
def _(
    gradient_BHTP: Tensor, q_BHTP: Tensor, k_BKTP: Tensor, v_BKTP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_BHTP), torch.empty_like(k_BKTP), torch.empty_like(v_BKTP)


_attended.register_autograd(
    lambda ctx, gradient_BHTP: _attended_backward(gradient_BHTP, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _forward(q_BHTP: Tensor, k_BKTP: Tensor, v_BKTP: Tensor) -> Tensor:
    out_BHTP = _like(q_BHTP)
    with as_it_is(q_BHTP):
        for rows in _rows(q_BHTP):
            q, k, v = (t_BHTP[rows] for t_BHTP in (q_BHTP, k_BKTP, v_BKTP))
            out = _by_key_head(out_BHTP[rows], k)
            q_NGTP, k_NTP, v_NTP = _scaled(q, k), _merged(k), _merged(v)
            later_QQ = _later(q)
            for first, end, needed in _blocks(q.shape[2]):
                with attending(needed):
                    p_NQE = _probabilities(q_NGTP, k_NTP, later_QQ, first, end)
                    y_NQP = torch.bmm(p_NQE, v_NTP[:, :end])
                out[:, :, :, first:end] = y_NQP.view_as(out[:, :, :, first:end])
    return out_BHTP


def _gradients(gradient_BHTP: Tensor, *given_and_out: Tensor) -> None:
    """Of q, k and v, into what follows them."""
    with as_it_is(gradient_BHTP):
        for rows in _rows(gradient_BHTP):
            _backward(gradient_BHTP[rows], *(t_BHTP[rows] for t_BHTP in given_and_out))


def _backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, of_q: Tensor, of_k: Tensor, of_v: Tensor
) -> None:
    """Of some sequences."""
    q_NGTP, k_NTP, v_NTP = _scaled(q, k), _merged(k), _merged(v)
    dy_NGTP = _merged(_by_key_head(gradient, k))
    of_q, scale = _by_key_head(of_q, k), q.shape[-1] ** -0.5
    sums, later_QQ = (_sums(of_k), _sums(of_v)), _later(q)
    dk_NTP, dv_NTP = (sum_RKTP.flatten(0, 1) for sum_RKTP in sums)
    for first, end, needed in _blocks(q.shape[2]):
        q_NQP, dy_NQP = q_NGTP[:, :, first:end].flatten(1, 2), dy_NGTP[:, :, first:end].flatten(1, 2)
        with attending(Pairs(0, needed.all, square=0)):  # the forward pass has counted them
            p_NQE = _probabilities(q_NGTP, k_NTP, later_QQ, first, end)
        with attending(needed):
            dv_NTP[:, :end] += torch.bmm(p_NQE.transpose(1, 2), dy_NQP)
            dp_NQE = torch.bmm(dy_NQP, v_NTP[:, :end].transpose(1, 2))
            ds_NQE = torch.ops.aten._softmax_backward_data(dp_NQE, p_NQE, -1, p_NQE.dtype)
            dq_NQP = torch.bmm(ds_NQE, k_NTP[:, :end]).mul_(scale)
            dk_NTP[:, :end] += torch.bmm(ds_NQE.transpose(1, 2), q_NQP)
        of_q[:, :, :, first:end] = dq_NQP.view_as(of_q[:, :, :, first:end])
    for out_RKTP, sum_RKTP in zip((of_k, of_v), sums, strict=True):
        if sum_RKTP is not out_RKTP:
            out_RKTP.copy_(sum_RKTP)


def _sums(out_RKTP: Tensor) -> Tensor:
    """Zeros in float32 or wider, in order in memory: ``out_RKTP`` itself if it is that and lies so."""
    wide = torch.promote_types(out_RKTP.dtype, torch.float32)
    if out_RKTP.dtype == wide and out_RKTP.is_contiguous():
        return out_RKTP.zero_()
    return torch.zeros(out_RKTP.shape, dtype=wide, device=out_RKTP.device)


def _later(q_RHTP: Tensor) -> Tensor:
    """What is added to the scores of a block's queries with its own keys: -inf where the key is later, 0
    elsewhere."""
    most = min(q_RHTP.shape[2], OWN_BLOCK)
    return torch.full((most, most), -torch.inf, dtype=q_RHTP.dtype, device=q_RHTP.device).triu_(1)


def _probabilities(q_NGTP: Tensor, k_NTP: Tensor, later_QQ: Tensor, first: int, end: int) -> Tensor:
    """What queries ``first`` to ``end`` make of the keys up to ``end``, (N, G * queries, E)."""
    q_NQP, queries = q_NGTP[:, :, first:end].flatten(1, 2), end - first
    scores_NQE = torch.bmm(q_NQP, k_NTP[:, :end].transpose(1, 2))
    own_HQQ = scores_NQE.view(-1, queries, end)[..., first:]
    # Half of masked_fill_'s time; what is not finite of a later key is gone before the sum.
    own_HQQ.tril_().add_(later_QQ[:queries, :queries])
    return scores_NQE.softmax(-1)


def _blocks(tokens: int) -> Iterator[tuple[int, int, Pairs]]:
    """Blocks of queries, first to end, and of each, what causal attention needs of its pairs."""
    for first in range(0, tokens, OWN_BLOCK):
        end = min(first + OWN_BLOCK, tokens)
        queries = end - first
        needed = causal_pairs(queries, end, ahead=first)
        yield first, end, Pairs(needed, queries * end, square=queries * tokens)


def _rows(q_BHTP: Tensor) -> list[slice]:
    """So many sequences at a time that their scores of a block are few."""
    sequences, heads, tokens, _ = q_BHTP.shape
    each = max(1, SCORES // max(1, heads * min(tokens, OWN_BLOCK) * tokens))
    return [slice(first, first + each) for first in range(0, sequences, each)]


def _by_key_head(t_RHTP: Tensor, k_RKTP: Tensor) -> Tensor:
    """(R, K, G, T, P): the heads that share a key head side by side."""
    return t_RHTP.unflatten(1, (k_RKTP.shape[1], -1))


def _merged(t_RK: Tensor) -> Tensor:
    """Sequences and key heads as one, N, in order in memory."""
    return t_RK.contiguous().flatten(0, 1)


def _scaled(q_RHTP: Tensor, k_RKTP: Tensor) -> Tensor:
    """q / sqrt(P), (N, G, T, P), in order in memory."""
    q_RKGTP = _by_key_head(q_RHTP, k_RKTP)
    out = torch.empty(q_RKGTP.shape, dtype=q_RHTP.dtype, device=q_RHTP.device)
    return torch.mul(q_RKGTP, q_RHTP.shape[-1] ** -0.5, out=out).flatten(0, 1)


def _like(t_BHTP: Tensor) -> Tensor:
    """Unset, in memory that lies as (B, T, H, P)."""
    sequences, heads, tokens, width = t_BHTP.shape
    return t_BHTP.new_empty(sequences, tokens, heads, width).transpose(1, 2)
