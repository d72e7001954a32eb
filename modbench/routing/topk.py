"""Router scores and the packing of what they select. Router arithmetic is in float32 or wider.

B sequences, T tokens, N tokens of a batch, K chosen, D model width, E experts, G groups of experts, A
assignments.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.model.counted import realised


def score(x_D: Tensor, weight_ED: Tensor) -> Tensor:
    """``x @ weight^T`` in float32 (float64 for float64 input), whatever autocast says: (..., E).

    Of E = 1 and a number of rows that 8 does not divide, a CPU's matmul may give equal rows other last
    bits: two equal tokens before a first block that is routed are then no tie."""
    dtype = torch.promote_types(x_D.dtype, torch.float32)
    kind = x_D.device.type
    # The meta device knows no autocast, and entering a context takes as long as scoring one token.
    off = kind == "meta" or not torch.is_autocast_enabled(kind)
    with nullcontext() if off else torch.autocast(kind, enabled=False):
        return F.linear(x_D.to(dtype), weight_ED.to(dtype))


def capacity_tokens(capacity: float, tokens: int, among: int = 1) -> int:
    """ceil(capacity * tokens / among) with ``capacity`` as a decimal number, so that 0.07 of 100 is 7;
    at least 1 if there is a token, at most ``tokens``."""
    return _share(capacity, int(tokens), among)  # a size is a tensor while torch.jit traces


@lru_cache(maxsize=4096)
def _share(capacity: float, tokens: int, among: int) -> int:
    return min(tokens, math.ceil(Fraction(repr(capacity)) * tokens / among))


def highest(scores_BT: Tensor, counts: list[int], real_BT: Tensor | None) -> Tensor:
    """Mask (B, T) of the ``counts[b]`` highest scores of each row, padding never among them. Ties go to
    the earlier token, which `torch.topk` does not guarantee."""
    if real_BT is not None:
        scores_BT = scores_BT.masked_fill(~real_BT, -torch.inf)
    order_BT = scores_BT.argsort(dim=-1, descending=True, stable=True)
    if min(counts) == max(counts):  # no copy from the host, which would wait for a GPU
        return torch.zeros_like(scores_BT, dtype=torch.bool).scatter_(1, order_BT[:, : counts[0]], 1)
    limits_B1 = torch.tensor(counts, device=scores_BT.device)[:, None]
    within_BT = torch.arange(scores_BT.shape[1], device=scores_BT.device) < limits_B1
    return torch.zeros_like(within_BT).scatter_(1, order_BT, within_BT)


def counts_to_host(counts: Tensor, nominal: Sequence[int]) -> list[int]:
    """``counts`` as integers of the host. A tensor on the meta device has no values; the result
    is then ``nominal``, the counts that the router's options state."""
    if not counts.is_meta:
        return counts.tolist()
    values = list(nominal)
    known = realised.get() or {}  # a layer without a ledger is being counted
    if len(known.get("depth", ())) == len(values):
        return list(known["depth"])
    return evenly(known["experts"][0], len(values)) if "experts" in known else values


def nonzero_indices(mask: Tensor, total: int) -> Tensor:
    """Return the indices at which ``mask``, taken as one row, is true: (``total``,), the number that it
    is known to have."""
    if mask.is_meta:
        return mask.new_empty(total, dtype=torch.long)
    return mask.flatten().nonzero().squeeze(1)


def evenly(total: int, among: int) -> list[int]:
    """``total`` in ``among`` parts that differ by one at most."""
    return [(total + among - 1 - part) // among for part in range(among)]


def pack_tokens(selected_BT: Tensor, longest: int, *, full: bool = False) -> Tensor:
    """Indices (B, ``longest``) of each row's selected tokens in their own order; rows with fewer are
    filled up with tokens that aren't selected. ``full``: none has fewer."""
    if full and selected_BT.is_cpu and not torch.compiler.is_compiling():  # else the host would wait
        rows, tokens = selected_BT.shape
        return (nonzero_indices(selected_BT, rows * longest) % max(tokens, 1)).view(rows, longest)
    return (~selected_BT).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]


def best_experts(scores_NE: Tensor, k: int, groups: int = 1, top_groups: int = 1) -> Tensor:
    """The ``k`` experts that score highest, (N, K), the best first, ties to the lower number; of
    ``groups`` equal groups, only those in the ``top_groups`` whose best k / ``top_groups`` experts,
    rounded up, sum to most."""
    if groups > top_groups:
        scores_NGM = scores_NE.unflatten(1, (groups, -1))
        members = min(-(-k // top_groups), scores_NGM.shape[2])
        group_NG = scores_NGM.sort(dim=-1, descending=True).values[..., :members].sum(-1)
        order_NG = group_NG.argsort(dim=-1, descending=True, stable=True)
        out_NG = torch.zeros_like(group_NG, dtype=torch.bool).scatter_(1, order_NG[:, top_groups:], 1)
        scores_NE = scores_NGM.masked_fill(out_NG[..., None], -torch.inf).flatten(1)
    return scores_NE.argsort(dim=-1, descending=True, stable=True)[:, :k]
