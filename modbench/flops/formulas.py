"""What each op that multiplies matrices costs, from its arguments and its result.

A formula gives the FLOPs of the convention ``full``; for the convention ``model`` the counter scales
causal attention down to its triangle.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from modbench.errors import UserError

#: From the op's arguments by their schema names, and its result, to its FLOPs.
Formula = Callable[[Mapping[str, Any], Any], int]


def register_flop_formula(op: str, formula: Formula) -> None:
    """Count the op called ``op`` (such as ``"mylib::my_matmul"``) by ``formula``, which takes the op's
    arguments, by their schema names, and its result, and returns FLOPs (2 per multiply-accumulate).

    Raises:
        UserError: the op is counted already.
    """
    if op in FORMULAS:
        raise UserError(f"op '{op}' already has a FLOP formula; remove one of the two registrations")
    FORMULAS[op] = formula


def causal_pairs(queries: int, keys: int) -> int:
    """Query-key pairs of causal attention as PyTorch aligns it: query i sees keys 0 to i."""
    inside = min(queries, keys)
    return inside * (inside + 1) // 2 + (queries - inside) * keys


def _matmul(first: str, second: str) -> Formula:
    """(..., N, K) @ (..., K, M), (N, K) @ (K,) or (K,) @ (K,)."""

    def formula(arguments: Mapping[str, Any], result: Any) -> int:
        left, right = arguments[first], arguments[second]
        return 2 * left.numel() * (right.shape[-1] if right.dim() > 1 else 1)

    return formula


def _attention(factor: int) -> Formula:
    """Scores and weighted values over all pairs; ``factor`` 2 for the backward pass."""

    def formula(arguments: Mapping[str, Any], result: Any) -> int:
        query, key, value = arguments["query"], arguments["key"], arguments["value"]
        pairs = math.prod(query.shape[:-1]) * key.shape[-2]
        return 2 * pairs * (query.shape[-1] + value.shape[-1]) * factor

    return formula


def _grouped(arguments: Mapping[str, Any], result: Any) -> int:
    """Groups along the rows, the columns or the contraction, only up to the last offset. On the meta
    device offsets have no values: then all rows count."""
    left: Tensor = arguments.get("self", arguments.get("mat_a"))
    right: Tensor = arguments.get("mat2", arguments.get("mat_b"))
    offsets = arguments.get("offs")
    if left.dim() == right.dim() == 3:
        return 2 * left.numel() * right.shape[-1]
    last = None if offsets is None or offsets.is_meta else int(offsets[-1])
    if left.dim() == 2 and right.dim() == 3:
        rows = left.shape[0] if last is None else last
        return 2 * rows * left.shape[1] * right.shape[2]
    if left.dim() == 3:
        columns = right.shape[1] if last is None else last
        return 2 * left.shape[1] * left.shape[2] * columns
    inner = left.shape[1] if last is None else last
    return 2 * left.shape[0] * inner * right.shape[1]


def _convolution(arguments: Mapping[str, Any], result: Tensor) -> int:
    weight: Tensor = arguments["weight"]
    # Each output of a convolution, and each input of a transposed one, meets one filter's weights.
    meets = arguments["input"] if arguments["transposed"] else result
    return 2 * meets.numel() * math.prod(weight.shape[1:])


def _convolution_backward(arguments: Mapping[str, Any], result: Any) -> int:
    weight: Tensor = arguments["weight"]
    meets = arguments["input"] if arguments["transposed"] else arguments["grad_output"]
    wanted = sum(arguments["output_mask"][:2])
    return 2 * meets.numel() * math.prod(weight.shape[1:]) * wanted


def _fused_attention_layer(arguments: Mapping[str, Any], result: Any) -> int:
    """Projections and attention of the fused inference path of `nn.MultiheadAttention`."""
    query, key = arguments.get("query", arguments.get("src")), arguments.get("key")
    sequences, queries, width = query.shape
    keys = queries if key is None else key.shape[1]
    projected = sequences * (2 * queries + 2 * keys) * width * width
    return 2 * projected + 4 * sequences * queries * keys * width


def _fused_encoder_layer(arguments: Mapping[str, Any], result: Any) -> int:
    rows = math.prod(arguments["src"].shape[:-1])
    hidden = arguments["ffn_weight_1"].numel() + arguments["ffn_weight_2"].numel()
    return _fused_attention_layer(arguments, result) + 2 * rows * hidden


def _linear_backward(arguments: Mapping[str, Any], result: Any) -> int:
    wanted = sum(arguments["output_mask"][:2])
    return 2 * arguments["grad_output"].numel() * arguments["self"].shape[-1] * wanted


def _sparse(first: str, second: str) -> Formula:
    """Each stored element of ``first`` meets one row of ``second``."""

    def formula(arguments: Mapping[str, Any], result: Any) -> int:
        left, right = arguments[first], arguments[second]
        stored = left.values().numel() if left.layout != torch.sparse_coo else left._nnz()
        return 2 * stored * right.shape[-1]

    return formula


_SDPA = (
    "flash_attention",
    "flash_attention_for_cpu",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
)

FORMULAS: dict[str, Formula] = {
    "aten::mm": _matmul("self", "mat2"),
    "aten::addmm": _matmul("mat1", "mat2"),
    "aten::addmm_": _matmul("mat1", "mat2"),
    "aten::_addmm_activation": _matmul("mat1", "mat2"),
    "aten::bmm": _matmul("self", "mat2"),
    "aten::baddbmm": _matmul("batch1", "batch2"),
    "aten::baddbmm_": _matmul("batch1", "batch2"),
    "aten::addbmm": _matmul("batch1", "batch2"),
    "aten::addbmm_": _matmul("batch1", "batch2"),
    "aten::mv": _matmul("self", "vec"),
    "aten::addmv": _matmul("mat", "vec"),
    "aten::addmv_": _matmul("mat", "vec"),
    "aten::dot": _matmul("self", "tensor"),
    "aten::vdot": _matmul("self", "other"),
    "aten::addr": lambda arguments, result: 2 * result.numel(),
    "aten::_int_mm": _matmul("self", "mat2"),
    "aten::_scaled_mm": _matmul("self", "mat2"),
    "aten::mkldnn_linear": lambda arguments, result: 2 * result.numel() * arguments["self"].shape[-1],
    "aten::linear": lambda arguments, result: 2 * result.numel() * arguments["input"].shape[-1],
    "aten::linear_backward": _linear_backward,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::_native_multi_head_attention": _fused_attention_layer,
    "aten::_transformer_encoder_layer_fwd": _fused_encoder_layer,
    "aten::_sparse_addmm": _sparse("mat1", "mat2"),
    "aten::_sparse_mm": _sparse("sparse", "dense"),
    **{f"aten::_scaled_dot_product_{kind}": _attention(1) for kind in _SDPA},
    **{f"aten::_scaled_dot_product_{kind}_backward": _attention(2) for kind in _SDPA},
}
