"""Tokens to experts and back: sort assignments by expert, and sum the weighted results of a token.

`Tensor.index_add` adds in the order of its index on a CPU, whatever the number of threads; on a GPU
PyTorch's deterministic algorithms do. Advanced indexing (``x[index]``) would not.

N tokens, K experts of a token, E experts, A rows (token-expert assignments), D model width.
"""

import torch
from torch import Tensor


def by_expert(
    experts_NK: Tensor, load_E: Tensor, experts: int, capacity: int | None
) -> tuple[Tensor, Tensor]:
    """Return the assignments sorted by expert, earlier tokens first, (A,), those that are not computed
    last; and how many each of the first ``experts`` experts, which compute, has: at most ``capacity``.
    """
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


def from_experts(rows_AD: Tensor, gates_A: Tensor, tokens_A: Tensor, tokens: int) -> Tensor:
    """The sum of each token's rows, weighted by their gates, (N, D), in the dtype of the gates; 0 for a
    token without rows."""
    weighted_AD = rows_AD.to(gates_A.dtype) * gates_A[:, None]
    return weighted_AD.new_zeros(tokens, rows_AD.shape[1]).index_add(0, tokens_A, weighted_AD)
