"""The FLOP formula of each op that multiplies matrices, from its arguments and its result.

A formula returns `Flops`, or an integer if all conventions agree.

B sequences, L queries, S keys, N rows, K contracted, M columns, D width.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from modbench.counting.attention import FusedAttention, allowed_pairs, has_no_values
from modbench.errors import UserError
from modbench.ledger import Flops

Arguments = Mapping[str, Any]
#: Maps the op's arguments, by their schema names, and its result to FLOPs.
Formula = Callable[[Arguments, Any], int | Flops]


def register_flop_formula(op: str | OpOverload | OpOverloadPacket, formula: Formula) -> None:
    """Count ``op`` (an op, or its name such as ``"mylib::my_matmul"``) by ``formula``, which takes the
    op's arguments, by their schema names, and its result, and returns FLOPs (2 per multiply-accumulate):
    an integer for all conventions, or `modbench.ledger.Flops`. Raise a `UserError` for a malformed name
    or an op that has a formula."""
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
    """(..., N, K) @ (..., K, M), (N, K) @ (K,) or (K,) @ (K,), one of them sparse or both nested."""

    def formula(given: Arguments, result: Any) -> int:
        left, right = given[first], given[second]
        if left.is_nested or right.is_nested:
            return _product(left, result)
        columns = right.shape[-1] if right.dim() > 1 else 1
        if right.layout == torch.strided:
            return 2 * _stored(left) * columns
        if left.layout == torch.strided:
            return 2 * _stored(right) * math.prod(left.shape[:-1])
        raise UserError(
            "FLOPs of a product of two sparse matrices depend on where their elements stand; make one "
            "of them dense to count it"
        )

    return formula


def _stored(tensor: Tensor) -> int:
    """Count the elements that a tensor stores, explicit zeros of sparse ones and their blocks
    included."""
    if tensor.layout == torch.strided:
        return tensor.numel()
    return (tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()).numel()


def _product(left: Tensor, result: Tensor) -> int:
    """Each element of the result is a dot product with a row of ``left``; per tensor if they are
    nested."""
    if not left.is_nested:
        return 2 * result.numel() * left.shape[-1]
    results, lefts = result._nested_tensor_size(), left._nested_tensor_size()
    return 2 * int((results.prod(1) * lefts[:, -1]).sum())


def _grouped(given: Arguments, result: Any) -> int:
    """Groups along the rows, the columns or the contraction, up to the last offset. On the meta device
    offsets have no values, and all rows count."""
    left: Tensor = given.get("self", given.get("mat_a"))
    right: Tensor = given.get("mat2", given.get("mat_b"))
    if left.dim() == right.dim() == 3:
        return 2 * left.numel() * right.shape[-1]
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    offsets = given.get("offs")
    if offsets is not None and not has_no_values(offsets):
        last = int(offsets[-1])
        if right.dim() == 3:
            rows = last
        elif left.dim() == 3:
            columns = last
        else:
            inner = last
    return 2 * rows * inner * columns


def _convolution(given: Arguments, result: Any) -> int:
    """Each output of a convolution, and each input of a transposed one, is multiplied with one filter;
    in the backward pass once per gradient."""
    weight: Tensor = given["weight"]
    wanted = sum(given["output_mask"][:2]) if "output_mask" in given else 1
    meets = given["input"] if given["transposed"] else given.get("grad_output", result)
    return 2 * meets.numel() * math.prod(weight.shape[1:]) * wanted


def _linear(rows: str) -> Formula:
    """Rows times a weight whose layout hides its shape."""
    return lambda given, result: 2 * result.numel() * given[rows].shape[-1]


def _linear_backward(given: Arguments, result: Any) -> int:
    wanted = sum(given["output_mask"][:2])
    return 2 * given["grad_output"].numel() * given["self"].shape[-1] * wanted


def _bag(rows: str) -> Formula:
    """Each index, except padding, adds its weighted row to a bag, as wide as ``rows``. A sum without
    weights is not a matmul. On the meta device indices have no values, and all count."""

    def formula(given: Arguments, result: Any) -> int:
        if "per_sample_weights" in given and given["per_sample_weights"] is None:
            return 0
        indices: Tensor = given["indices"]
        padding = given.get("padding_idx", -1)
        every = has_no_values(indices) or padding is None or padding < 0
        met = indices.numel() if every else int((indices != padding).sum())
        return 2 * met * given[rows].shape[-1]

    return formula


def _linear_cross_entropy(given: Arguments, result: Any) -> int:
    """The logits; and the gradients of both operands, which the op computes in its forward pass."""
    gradients = sum(given.get(f"compute_{name}_grad", False) for name in ("input", "linear_weight"))
    return 2 * given["input"].numel() * given["linear_weight"].shape[0] * (1 + gradients)


def _attention_layer(given: Arguments, result: Any) -> Flops:
    """Projections and attention of the fused inference path of `nn.MultiheadAttention`. Of a nested
    input the real tokens are projected; scores are computed for all, padded to the longest."""
    query, key = given.get("query", given.get("src")), given.get("key")
    width = given["embed_dim"]
    hidden = given.get("mask")
    if query.is_nested:
        lengths = [int(length) for length in query._nested_tensor_size()[:, 0]]
        rows, pairs = 2 * sum(lengths), len(lengths) * max(lengths) ** 2
        scores = Flops(4 * width * sum(length**2 for length in lengths), 4 * width * pairs)
    else:
        sequences, queries = query.shape[:2]
        keys = queries if key is None else key.shape[1]
        rows, all_scores = sequences * (queries + keys), 4 * sequences * queries * keys * width
        if hidden is not None and hidden.dtype is torch.bool:
            hidden = hidden.logical_not()  # here True means masked
        needed = allowed_pairs(hidden)
        scores = Flops(all_scores, all_scores) if needed is None else needed.split(all_scores)
    projections = 4 * rows * width * width
    return Flops(projections, projections) + scores


def _encoder_layer(given: Arguments, result: Any) -> Flops:
    weights = given["ffn_weight_1"].numel() + given["ffn_weight_2"].numel()
    mlp = 2 * given["src"].numel() // given["embed_dim"] * weights
    return _attention_layer(given, result) + Flops(mlp, mlp)


def _recurrent_layer(times: int) -> Formula:
    """One layer in one direction over (steps, B, D): weights for the input, and for the state."""

    def formula(given: Arguments, result: Any) -> int:
        first, second = ("weight0", "weight1") if "weight0" in given else ("weight1", "weight2")
        steps, sequences = given["input"].shape[:2]
        return 2 * times * steps * sequences * (given[first].numel() + given[second].numel())

    return formula


def _trilinear(given: Arguments, result: Any) -> int:
    """Three tensors multiplied and summed, in slices along one dimension: the first two over dimensions
    that the third lacks, then their product and the third over the rest; each is a matmul if it sums."""
    unrolled = given["unroll_dim"]
    summed = set(given["sumdim"])
    shapes = []
    for n in "123":
        tensor, expanded = given[f"i{n}"], given[f"expand{n}"]
        sizes = iter(tensor.shape)
        rank = tensor.dim() + len(expanded)
        shapes.append([1 if dim in expanded else next(sizes) for dim in range(rank)])
    slices = max(shape[unrolled] for shape in shapes)
    first, second, third = ([*shape[:unrolled], 1, *shape[unrolled + 1 :]] for shape in shapes)
    lacking = {dim for dim in summed if dim in given["expand3"]} - {unrolled}
    flops, pair = _summed_product(first, second, lacking)
    more, _ = _summed_product(pair, third, summed - lacking - {unrolled})
    return slices * (flops + more)


def _summed_product(left: list[int], right: list[int], summed: set[int]) -> tuple[int, list[int]]:
    """Return FLOPs and shape of a product summed over some dimensions; those that one side lacks are
    summed before."""
    sizes = [
        min(pair) if dim in summed else max(pair)
        for dim, pair in enumerate(zip(left, right, strict=True))
    ]
    shape = [1 if dim in summed else size for dim, size in enumerate(sizes)]
    return (2 * math.prod(sizes) if summed else 0), shape


def _euclidean(given: Arguments, result: Any) -> int:
    """|x|^2 + |y|^2 - 2 x.y by one matmul over D + 2 columns."""
    return 2 * result.numel() * (given["x1"].shape[-1] + 2)


def _distances(given: Arguments, result: Any) -> int:
    """`torch.cdist` uses that matmul if asked to, or by default for more than 25 rows."""
    rows = max(given["x1"].shape[-2], given["x2"].shape[-2])
    mode = given.get("compute_mode") or 0
    by_matmul = given["p"] == 2 and (mode == 1 or (mode == 0 and rows > 25))
    return _euclidean(given, result) if by_matmul else 0


def _affine_grid(given: Arguments, result: Any) -> int:
    """Each point of the grid, with a 1 appended, times its sequence's matrix: (D, D + 1)."""
    sequences, _, *sizes = given["size"]
    width = len(sizes)
    return 2 * sequences * math.prod(sizes) * width * (width + 1)


_FUSED = FusedAttention()
_FUSED_BACKWARD = FusedAttention(backward=True)

#: Ops of ``aten`` by formula.
_ATEN: dict[str, Formula] = {
    "mm _int_mm _scaled_mm _scaled_mm_v2 bmm": _matmul("self", "mat2"),
    "addmm addmm_ _addmm_activation _sparse_addmm hspmm sspaddmm": _matmul("mat1", "mat2"),
    "baddbmm baddbmm_ addbmm addbmm_": _matmul("batch1", "batch2"),
    "_sparse_mm": _matmul("sparse", "dense"),
    "mv": _matmul("self", "vec"),
    "addmv addmv_": _matmul("mat", "vec"),
    "dot": _matmul("self", "tensor"),
    "vdot": _matmul("self", "other"),
    "addr addr_": lambda given, result: 2 * result.numel(),
    "_foreach_mm": lambda given, result: (
        2 * sum(x.numel() * y.shape[-1] for x, y in zip(given["self"], given["mat2"], strict=True))
    ),
    # These arrive undecomposed under inference mode, and nested.
    "matmul": lambda given, result: _product(given["self"], result),
    "matmul_backward": lambda given, result: _product(given["self"], given["grad"]) * sum(given["mask"]),
    # A nested input only has a number of elements.
    "linear": lambda given, result: 2 * given["input"].numel() * given["weight"].shape[0],
    "linear_backward": _linear_backward,
    # By substitution on either side, half of a matmul: n^2 k for k vectors of length n. Its backward
    # pass is one more solve and, for the triangle's gradient, a matmul, which are ops of their own.
    "linalg_solve_triangular": lambda given, result: result.numel() * given["self"].shape[-1],
    "mkldnn_linear _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu": _linear("self"),
    "_dyn_quant_matmul_4bit": _linear("inp"),
    "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2": _grouped,
    "convolution _convolution convolution_backward": _convolution,
    "_native_multi_head_attention": _attention_layer,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "mkldnn_rnn_layer": _recurrent_layer(1),
    "mkldnn_rnn_layer_backward": _recurrent_layer(2),
    "_trilinear": _trilinear,
    "affine_grid_generator": _affine_grid,
    "_euclidean_dist": _euclidean,
    "_cdist_forward": _distances,
    # Computed where ``self`` stores an element.
    "sparse_sampled_addmm": lambda given, result: 2 * _stored(given["self"]) * given["mat1"].shape[-1],
    "_embedding_bag _embedding_bag_forward_only": _bag("weight"),
    "_embedding_bag_backward _embedding_bag_dense_backward _embedding_bag_sparse_backward "
    "_embedding_bag_per_sample_weights_backward": _bag("grad"),
    "_scaled_dot_product_attention_math_for_mps": _FUSED,
    "_scaled_dot_product_flash_attention_for_cpu": FusedAttention(in_blocks=True),
    "_scaled_dot_product_flash_attention_for_cpu_backward": FusedAttention(
        backward=True, in_blocks=True
    ),
}

FORMULAS: dict[str, Formula] = {
    **{f"aten::{name}": formula for names, formula in _ATEN.items() for name in names.split()},
    "mkldnn::_linear_pointwise": _linear("X"),
    "mkl::_mkl_linear": _linear("X"),
    "torch_nn::_linear_cross_entropy_batch_chunked": _linear_cross_entropy,
    "torch_nn::_linear_cross_entropy_batch_chunked_no_reduction": _linear_cross_entropy,
}
for _kernel in ("flash", "efficient", "cudnn", "fused"):
    _op = f"aten::_scaled_dot_product_{_kernel}_attention" + "_overrideable" * (_kernel == "fused")
    FORMULAS |= {_op: _FUSED, f"{_op}_backward": _FUSED_BACKWARD}
