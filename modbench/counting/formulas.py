"""The FLOP formula of each op that multiplies matrices, from its arguments and its result.

A formula returns `Flops`, or an integer if all conventions agree.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from modbench.counting import fused
from modbench.counting.attention import FusedAttention
from modbench.errors import UserError
from modbench.ledger import Flops

#: Maps the op's arguments, by their schema names, and its result to FLOPs.
Formula = Callable[[Mapping[str, Any], Any], int | Flops]


def register_flop_formula(op: str | OpOverload | OpOverloadPacket, formula: Formula) -> None:
    """Count ``op`` (an op, or its name such as ``"mylib::my_matmul"``) by ``formula``, which takes the
    op's arguments, by their schema names, and its result, and returns FLOPs (2 per multiply-accumulate):
    an integer for all conventions, or `modbench.ledger.Flops`.

    Raises:
        UserError: a malformed name, or an op that has a formula.
    """
    if isinstance(op, OpOverload):
        op = op._schema.name
    elif isinstance(op, OpOverloadPacket):
        op = op._qualified_op_name
    if not isinstance(op, str) or op.count("::") != 1:
        raise UserError(
            f"op {op!r} is no op's name; give it as 'library::name', such as 'mylib::my_matmul'"
        )
    if op in FORMULAS:
        raise UserError(f"op '{op}' already has a FLOP formula; remove one of the two registrations")
    FORMULAS[op] = formula


def _matmul(first: str, second: str) -> Formula:
    """(..., N, K) @ (..., K, M), (N, K) @ (K,) or (K,) @ (K,)."""

    def formula(arguments: Mapping[str, Any], result: Any) -> int:
        left, right = arguments[first], arguments[second]
        if left.is_nested or right.is_nested:
            return _product(left, result)
        if left.layout != torch.strided or right.layout != torch.strided:
            return _sparse_product(left, right)
        return 2 * left.numel() * (right.shape[-1] if right.dim() > 1 else 1)

    return formula


def _sparse_product(left: Tensor, right: Tensor) -> int:
    """Each stored element of the sparse operand is multiplied with a row or column of the other.

    Raises:
        UserError: both operands are sparse: their shapes do not determine the products.
    """
    if left.layout != torch.strided and right.layout != torch.strided:
        raise UserError(
            "FLOPs of a product of two sparse matrices depend on where their elements stand; make one "
            "of them dense to count it"
        )
    if left.layout != torch.strided:
        return 2 * _stored(left) * (right.shape[-1] if right.dim() > 1 else 1)
    return 2 * _stored(right) * math.prod(left.shape[:-1])


def _stored(sparse: Tensor) -> int:
    """Count the stored elements of a sparse tensor, explicit zeros and those of its blocks included."""
    if sparse.layout == torch.sparse_coo:
        return int(sparse._values().numel())
    return sparse.values().numel()


def _product(left: Tensor, result: Tensor) -> int:
    """Each element of the result is a dot product with a row of ``left``; per tensor if they are
    nested."""
    if not left.is_nested:
        return 2 * result.numel() * left.shape[-1]
    results, lefts = result._nested_tensor_size(), left._nested_tensor_size()
    return 2 * int((results.prod(1) * lefts[:, -1]).sum())


def _grouped(arguments: Mapping[str, Any], result: Any) -> int:
    """Groups along the rows, the columns or the contraction, up to the last offset. On the meta device
    offsets have no values, and all rows count."""
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


def _each_product(arguments: Mapping[str, Any], result: Any) -> int:
    """Matrices times matrices, pair by pair."""
    pairs = zip(arguments["self"], arguments["mat2"], strict=True)
    return sum(2 * left.numel() * right.shape[-1] for left, right in pairs)


def _convolution(arguments: Mapping[str, Any], result: Tensor) -> int:
    weight: Tensor = arguments["weight"]
    # Each output of a convolution, and each input of a transposed one, is multiplied with one filter.
    meets = arguments["input"] if arguments["transposed"] else result
    return 2 * meets.numel() * math.prod(weight.shape[1:])


def _convolution_backward(arguments: Mapping[str, Any], result: Any) -> int:
    weight: Tensor = arguments["weight"]
    meets = arguments["input"] if arguments["transposed"] else arguments["grad_output"]
    wanted = sum(arguments["output_mask"][:2])
    return 2 * meets.numel() * math.prod(weight.shape[1:]) * wanted


def _linear(rows: str) -> Formula:
    """Rows times a weight whose layout hides its shape."""
    return lambda arguments, result: 2 * result.numel() * arguments[rows].shape[-1]


def _linear_backward(arguments: Mapping[str, Any], result: Any) -> int:
    wanted = sum(arguments["output_mask"][:2])
    return 2 * arguments["grad_output"].numel() * arguments["self"].shape[-1] * wanted


def _sparse(first: str, second: str) -> Formula:
    """Product of which one operand is sparse."""

    def formula(arguments: Mapping[str, Any], result: Any) -> int:
        return _sparse_product(arguments[first], arguments[second])

    return formula


def _bag(rows: str) -> Formula:
    """Each index adds its weighted row to a bag, as wide as ``rows``. A sum without weights is not a
    matmul."""

    def formula(arguments: Mapping[str, Any], result: Any) -> int:
        if "per_sample_weights" in arguments and arguments["per_sample_weights"] is None:
            return 0
        return 2 * _looked_up(arguments) * arguments[rows].shape[-1]

    return formula


def _looked_up(arguments: Mapping[str, Any]) -> int:
    """Count the indices without padding. On the meta device they have no values, and all count."""
    indices: Tensor = arguments["indices"]
    padding = arguments.get("padding_idx", -1)
    if indices.is_meta or padding is None or padding < 0:
        return indices.numel()
    return int((indices != padding).sum())


def _sampled(arguments: Mapping[str, Any], result: Any) -> int:
    """A product of dense matrices, computed where ``self`` stores an element."""
    return 2 * _stored(arguments["self"]) * arguments["mat1"].shape[-1]


def _conv_tbc(arguments: Mapping[str, Any], result: Tensor) -> int:
    """Convolution of (steps, B, D): a matmul per filter tap, over the steps at which the tap meets the
    input and not its padding."""
    steps, sequences, _ = arguments["self"].shape
    taps, pad = arguments["weight"].shape[0], arguments["pad"]
    met = sum(max(0, min(steps + pad - tap, result.shape[0]) - max(0, pad - tap)) for tap in range(taps))
    return 2 * met * sequences * arguments["weight"][0].numel()


def _affine_grid(grid: str) -> Formula:
    """Each point of the grid is a row of (x, y, 1) or (x, y, z, 1) times the transformation."""

    def formula(arguments: Mapping[str, Any], result: Tensor) -> int:
        points: Tensor = arguments.get(grid, result)
        return 2 * points.numel() * (points.shape[-1] + 1)

    return formula


def _linear_cross_entropy(arguments: Mapping[str, Any], result: Any) -> int:
    """The logits; and the gradients of both operands, which the op computes in its forward pass."""
    gradients = sum(
        arguments.get(f"compute_{operand}_grad", False) for operand in ("input", "linear_weight")
    )
    return 2 * arguments["input"].numel() * arguments["linear_weight"].shape[0] * (1 + gradients)


_SDPA = (
    "flash_attention",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
)

FORMULAS: dict[str, Formula] = {
    "aten::mm": _matmul("self", "mat2"),
    "aten::addmm": _matmul("mat1", "mat2"),
    "aten::addmm_": _matmul("mat1", "mat2"),
    "aten::_addmm_activation": _matmul("mat1", "mat2"),
    "aten::_foreach_mm": _each_product,
    "aten::bmm": _matmul("self", "mat2"),
    "aten::baddbmm": _matmul("batch1", "batch2"),
    "aten::baddbmm_": _matmul("batch1", "batch2"),
    "aten::addbmm": _matmul("batch1", "batch2"),
    "aten::addbmm_": _matmul("batch1", "batch2"),
    # These arrive undecomposed under inference mode, and nested.
    "aten::matmul": lambda given, result: _product(given["self"], result),
    "aten::matmul_backward": lambda given, result: (
        _product(given["self"], given["grad"]) * sum(given["mask"])
    ),
    "aten::mv": _matmul("self", "vec"),
    "aten::addmv": _matmul("mat", "vec"),
    "aten::addmv_": _matmul("mat", "vec"),
    "aten::dot": _matmul("self", "tensor"),
    "aten::vdot": _matmul("self", "other"),
    "aten::addr": lambda arguments, result: 2 * result.numel(),
    "aten::addr_": lambda arguments, result: 2 * result.numel(),
    "aten::_int_mm": _matmul("self", "mat2"),
    "aten::_scaled_mm": _matmul("self", "mat2"),
    "aten::_scaled_mm_v2": _matmul("self", "mat2"),
    "aten::mkldnn_linear": _linear("self"),
    # A nested input only has a number of elements.
    "aten::linear": lambda given, result: 2 * given["input"].numel() * given["weight"].shape[0],
    "aten::_weight_int8pack_mm": _linear("self"),
    "aten::_weight_int4pack_mm": _linear("self"),
    "aten::_weight_int4pack_mm_for_cpu": _linear("self"),
    "aten::_dyn_quant_matmul_4bit": _linear("inp"),
    "mkldnn::_linear_pointwise": _linear("X"),
    "mkl::_mkl_linear": _linear("X"),
    "aten::linear_backward": _linear_backward,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm_v2": _grouped,
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::_native_multi_head_attention": fused.attention_layer,
    "aten::_transformer_encoder_layer_fwd": fused.encoder_layer,
    "aten::mkldnn_rnn_layer": fused.recurrent_layer,
    "aten::mkldnn_rnn_layer_backward": fused.recurrent_layer_backward,
    "aten::_trilinear": fused.trilinear,
    "aten::_euclidean_dist": fused.euclidean,
    "aten::_cdist_forward": fused.distances,
    "aten::_sparse_addmm": _sparse("mat1", "mat2"),
    "aten::_sparse_mm": _sparse("sparse", "dense"),
    "aten::hspmm": _sparse("mat1", "mat2"),
    "aten::sspaddmm": _sparse("mat1", "mat2"),
    "aten::sparse_sampled_addmm": _sampled,
    "aten::conv_tbc": _conv_tbc,
    "aten::affine_grid_generator": _affine_grid("grid"),
    "aten::cudnn_affine_grid_generator": _affine_grid("grid"),
    "aten::cudnn_affine_grid_generator_backward": _affine_grid("grad"),
    "torch_nn::_linear_cross_entropy_batch_chunked": _linear_cross_entropy,
    "torch_nn::_linear_cross_entropy_batch_chunked_no_reduction": _linear_cross_entropy,
    "aten::_embedding_bag": _bag("weight"),
    "aten::_embedding_bag_forward_only": _bag("weight"),
    "aten::_embedding_bag_backward": _bag("grad"),
    "aten::_embedding_bag_dense_backward": _bag("grad"),
    "aten::_embedding_bag_sparse_backward": _bag("grad"),
    "aten::_embedding_bag_per_sample_weights_backward": _bag("grad"),
    "aten::_scaled_dot_product_attention_math_for_mps": FusedAttention(),
    **{f"aten::_scaled_dot_product_{kind}": FusedAttention() for kind in _SDPA},
    **{f"aten::_scaled_dot_product_{kind}_backward": FusedAttention(backward=True) for kind in _SDPA},
    "aten::_scaled_dot_product_flash_attention_for_cpu": FusedAttention(in_blocks=True),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": FusedAttention(
        backward=True, in_blocks=True
    ),
}
