"""Flex attention: which pairs its block mask's rule allows, and what its kernels compute.

B sequences, H heads, L queries, S keys; a mask covers them in blocks of its own size.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import _disable_current_modes

from modbench.ledger import Flops
from modbench.ledger.cpu_attention import backward_width

_ROWS = 128  # queries whose rule is evaluated at once, to limit memory


class FlexAttention:
    """The formula of flex attention's op. ``model``: pairs that the mask's rule allows, all if the mask
    has no values (on the meta device). ``executed``: pairs in the blocks that its compiled kernel
    computes (uncompiled, for debugging, it computes the square); the backward pass recomputes the
    scores."""

    def __init__(self, *, backward: bool = False) -> None:
        self._backward = backward

    def __call__(self, arguments: Mapping[str, Any], result: Any) -> Flops:
        query, key, value = arguments["query"], arguments["key"], arguments["value"]
        sequences, heads, queries, width = query.shape
        keys, value_width = key.shape[-2], value.shape[-1]
        mask = arguments["block_mask"]
        square = sequences * heads * queries * keys
        needed, computed = square, square
        if not (mask[2].is_meta or is_fake(mask[2])):
            # The mask is broadcast over sequences and heads.
            copies = sequences * heads // mask[2].shape[:2].numel()
            others = tuple(arguments["mask_mod_other_buffers"])
            with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
                needed = copies * _allowed(mask, others, queries, keys)
                computed = copies * _computed(mask, queries, keys)
        each = 2 * (width + value_width)
        if not self._backward:
            return Flops(needed * each, square * each, computed * each)
        executed = 2 * computed * backward_width(width, value_width)
        return Flops(2 * needed * each, 2 * square * each, executed)


def _allowed(mask: tuple[Any, ...], others: tuple[Any, ...], queries: int, keys: int) -> int:
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    rule: Callable[..., Tensor] = mask[-1]
    counts = mask[2]
    ranges = [torch.arange(size, device=counts.device) for size in (*counts.shape[:2], queries, keys)]
    for place in (3, 2, 1, 0):
        places = tuple(0 if n == place else None for n in range(4)) + (None,) * len(others)
        rule = torch.vmap(rule, in_dims=places)
    allowed = 0
    with TransformGetItemToIndex():
        for rows in ranges[2].split(_ROWS):
            found = rule(ranges[0], ranges[1], rows, ranges[3], *others)
            allowed += int(found.expand(*counts.shape[:2], len(rows), keys).sum())
    return allowed


def _computed(mask: tuple[Any, ...], queries: int, keys: int) -> int:
    *_, rows, columns, _ = mask
    pairs = 0
    for counts, indices in ((mask[2], mask[3]), (mask[4], mask[5])):
        if counts is None:
            continue
        listed = torch.arange(indices.shape[-1], device=counts.device) < counts[..., None]
        width = (keys - indices * columns).clamp(0, columns)
        first = torch.arange(counts.shape[-1], device=counts.device) * rows
        height = (queries - first).clamp(0, rows)
        pairs += int(((width * listed).sum(-1) * height).sum())
    return pairs
