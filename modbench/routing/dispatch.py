"""Tokens to experts and back: sort assignments by expert, gather the rows that experts are given,
scatter their weighted results.

`Tensor.index_add` adds in the order of its index on a CPU, whatever the number of threads; on a GPU
PyTorch's deterministic algorithms do. Advanced indexing (``x[index]``) would not.

N tokens, K experts of a token, E experts, A rows (token-expert assignments), D model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modbench.routing.topk import apply_capacity


def first_of_each_expert(
    experts_NK: Tensor, load_E: Tensor, load: Sequence[int], capacity: int | None
) -> tuple[Tensor, list[int]]:
    """Return the assignments that are computed, sorted by expert, earlier tokens first, (A,), and how
    many each expert has: at most ``capacity``. ``load`` are the assignments of the experts that compute,
    which are the first of ``load_E``."""
    order_A = experts_NK.flatten().argsort(stable=True)[: sum(load)]
    if capacity is None:
        return order_A, list(load)
    expert_A = experts_NK.flatten().index_select(0, order_A)
    counts = [min(count, capacity) for count in load]
    return order_A.index_select(0, apply_capacity(expert_A, load_E, capacity, sum(counts))), counts


def first_on_device(
    experts_NK: Tensor, load_E: Tensor, experts: int, capacity: int | None
) -> tuple[Tensor, Tensor]:
    """As `first_of_each_expert`, with all assignments: those that are not computed come last, so that
    the host does not have to wait for their number. ``experts`` of the experts compute."""
    expert_A = experts_NK.flatten()
    order_A = expert_A.argsort(stable=True)
    if capacity is None:
        return order_A, load_E[:experts]
    sorted_A = expert_A.index_select(0, order_A)
    first_E = load_E.cumsum(0) - load_E
    place_A = torch.arange(len(sorted_A), device=sorted_A.device) - first_E.index_select(0, sorted_A)
    left_out_A = (place_A >= capacity) | (sorted_A >= experts)
    order_A = order_A.index_select(0, left_out_A.to(torch.uint8).argsort(stable=True))
    return order_A, load_E[:experts].clamp(max=capacity)


def to_experts(x_ND: Tensor, tokens_A: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that experts are given, (A, D), in ``dtype``: row a is of token ``tokens_A[a]``.
    Gradients of a token's rows are summed in the dtype of ``x_ND``."""
    return x_ND.index_select(0, tokens_A).to(dtype)


def from_experts(rows_AD: Tensor, gates_A: Tensor, tokens_A: Tensor, tokens: int) -> Tensor:
    """The sum of each token's rows, weighted by their gates, (N, D), in the dtype of the gates; 0 for a
    token without rows."""
    weighted_AD = rows_AD.to(gates_A.dtype) * gates_A[:, None]
    return weighted_AD.new_zeros(tokens, rows_AD.shape[1]).index_add(0, tokens_A, weighted_AD)
