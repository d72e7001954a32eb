"""Tokens to experts and back: gather the rows that experts are given, scatter their weighted results.

`Tensor.index_add` adds in the order of its index on a CPU, whatever the number of threads; on a GPU
PyTorch's deterministic algorithms do. Advanced indexing (``x[index]``) would not.

N tokens, A rows (token-expert assignments), D model width.
"""

import torch
from torch import Tensor


def to_experts(x_ND: Tensor, tokens_A: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that experts are given, (A, D), in ``dtype``: row a is of token ``tokens_A[a]``.
    Gradients of a token's rows are summed in the dtype of ``x_ND``."""
    return x_ND.index_select(0, tokens_A).to(dtype)


def from_experts(rows_AD: Tensor, gates_A: Tensor, tokens_A: Tensor, tokens: int) -> Tensor:
    """The sum of each token's rows, weighted by their gates, (N, D), in the dtype of the gates; 0 for a
    token without rows."""
    weighted_AD = rows_AD.to(gates_A.dtype) * gates_A[:, None]
    return weighted_AD.new_zeros(tokens, rows_AD.shape[1]).index_add(0, tokens_A, weighted_AD)
