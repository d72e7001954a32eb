"""Formulas of ops that contain several matmuls: fused transformer layers, recurrent layers, bilinear
forms, distances.

B sequences, L queries, S keys, D width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from modbench.counting.attention import Pairs, allowed_pairs
from modbench.ledger import Flops


def attention_layer(arguments: Mapping[str, Any], result: Any) -> Flops:
    """Projections and attention of the fused inference path of `nn.MultiheadAttention`. Of a nested
    input the real tokens are projected; scores are computed for all, padded to the longest."""
    query, key = arguments.get("query", arguments.get("src")), arguments.get("key")
    width, hidden = arguments["embed_dim"], arguments.get("mask")
    needed: Pairs | None = None
    if query.is_nested:
        lengths = [int(length) for length in query._nested_tensor_size()[:, 0]]
        rows, pairs = 2 * sum(lengths), len(lengths) * max(lengths) ** 2
        needed = Pairs(sum(length * length for length in lengths), pairs)
    else:
        sequences, queries = query.shape[:2]
        keys = queries if key is None else key.shape[1]
        rows, pairs = sequences * (queries + keys), sequences * queries * keys
        if hidden is not None and hidden.dtype is torch.bool:
            hidden = hidden.logical_not()  # here True means masked
        needed = allowed_pairs(hidden)
    scores = 4 * pairs * width
    projections = 4 * rows * width * width
    return Flops(projections + (scores if needed is None else needed.of(scores)), projections + scores)


def encoder_layer(arguments: Mapping[str, Any], result: Any) -> Flops:
    weights = arguments["ffn_weight_1"].numel() + arguments["ffn_weight_2"].numel()
    rows = arguments["src"].numel() // arguments["embed_dim"]
    mlp = 2 * rows * weights
    return attention_layer(arguments, result) + Flops(mlp, mlp)


def recurrent_layer(arguments: Mapping[str, Any], result: Any) -> int:
    """One layer in one direction over (steps, B, D): weights for the input, and for the state."""
    first, second = ("weight0", "weight1") if "weight0" in arguments else ("weight1", "weight2")
    steps, sequences = arguments["input"].shape[:2]
    return 2 * steps * sequences * (arguments[first].numel() + arguments[second].numel())


def recurrent_layer_backward(arguments: Mapping[str, Any], result: Any) -> int:
    return 2 * recurrent_layer(arguments, result)


def trilinear(arguments: Mapping[str, Any], result: Any) -> int:
    """Three tensors multiplied and summed, in slices along one dimension: the first two over dimensions
    that the third lacks, then their product and the third over the rest; each is a matmul if it sums."""
    unrolled, summed = arguments["unroll_dim"], set(arguments["sumdim"])
    shapes = []
    for n in "123":
        tensor, expanded = arguments[f"i{n}"], arguments[f"expand{n}"]
        sizes = iter(tensor.shape)
        rank = tensor.dim() + len(expanded)
        shapes.append([1 if dim in expanded else next(sizes) for dim in range(rank)])
    slices = max(shape[unrolled] for shape in shapes)
    first, second, third = ([*shape[:unrolled], 1, *shape[unrolled + 1 :]] for shape in shapes)
    lacking = {dim for dim in summed if dim in arguments["expand3"]} - {unrolled}
    flops, pair = _product(first, second, lacking)
    more, _ = _product(pair, third, summed - lacking - {unrolled})
    return slices * (flops + more)


def _product(left: list[int], right: list[int], summed: set[int]) -> tuple[int, list[int]]:
    """Return FLOPs and shape of a product summed over some dimensions; those that one side lacks are
    summed before."""
    sizes = [
        min(pair) if dim in summed else max(pair)
        for dim, pair in enumerate(zip(left, right, strict=True))
    ]
    shape = [1 if dim in summed else size for dim, size in enumerate(sizes)]
    return (2 * math.prod(sizes) if summed else 0), shape


def euclidean(arguments: Mapping[str, Any], result: Any) -> int:
    """|x|^2 + |y|^2 - 2 x.y by one matmul over D + 2 columns."""
    return 2 * result.numel() * (arguments["x1"].shape[-1] + 2)


def distances(arguments: Mapping[str, Any], result: Any) -> int:
    """`torch.cdist` uses that matmul if asked to, or by default for more than 25 rows."""
    rows = max(arguments["x1"].shape[-2], arguments["x2"].shape[-2])
    mode = arguments.get("compute_mode") or 0
    by_matmul = arguments["p"] == 2 and (mode == 1 or (mode == 0 and rows > 25))
    return euclidean(arguments, result) if by_matmul else 0
