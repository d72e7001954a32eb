"""Ops that take programs: control flow counts by the branch taken, flex attention by its mask.

B sequences, H heads, L queries, S keys; a mask covers them in blocks of its own size.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from modbench.counting.attention import has_no_values
from modbench.counting.formulas import Formula
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
        if not has_no_values(mask[2]):
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
    from torch.nn.attention.flex_attention import create_mask

    rule = mask[-1]
    counts = mask[2]
    allowed = 0
    for start in range(0, queries, _ROWS):

        def shifted(b: Tensor, h: Tensor, query: Tensor, key: Tensor, start: int = start) -> Tensor:
            allowed: Tensor = rule(b, h, query + start, key, *others)
            return allowed

        rows = min(_ROWS, queries - start)
        sequences, heads = counts.shape[:2]
        allowed += int(create_mask(shifted, sequences, heads, rows, keys, counts.device).sum())
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


_OPS = torch.ops.higher_order
_FLEX: dict[str, Formula] = {
    "flex_attention": FlexAttention(),
    "flex_attention_backward": FlexAttention(backward=True),
}


def _scan(combine: Any, start: Any, over: Any, further: Any) -> Any:
    """Return the final carry and the stacked outputs of all slices: flat, or, for PyTorch's function
    ``scan`` (whose ``combine`` is a partial), in the user's structure. PyTorch 2.11's own loop runs the
    first slice twice, to infer shapes."""
    shape: Any = None
    carry = tuple(start)
    rows = []
    if not over or not len(over[0]):
        from torch._higher_order_ops.scan import generic_scan

        return generic_scan(combine, start, over, additional_inputs=further)
    for number in range(len(over[0])):
        slices = (each.select(0, number) for each in over)
        given, shape = tree_flatten(combine(*carry, *slices, *further))
        carry = tuple(given[: len(carry)])
        rows.append(given[len(carry) :])
    stacked = (None if of[0] is None else torch.stack(of) for of in zip(*rows, strict=True))
    flat = (*carry, *stacked)
    return tree_unflatten(flat, shape) if isinstance(combine, functools.partial) else flat


def _map(program: Any, over: Any, further: Any, **options: Any) -> Any:
    """``options``: arguments of later PyTorch versions."""
    from torch._higher_order_ops.map import map_dense

    return map_dense(program, over, further, **options)


#: Ops that run their program once per slice.
_PLAIN: dict[str, Callable[..., Any]] = {"scan": _scan, "map_impl": _map}


def run(func: Any, args: Any, kwargs: Any, mode: Any) -> Any:
    """Run a higher-order op with the programs inside it under the dispatch mode ``mode``. Raise a
    `UserError` for an unknown op."""
    if func is _OPS.cond:
        condition, yes, no, operands = args
        with mode:
            return (yes if bool(condition) else no)(*operands)
    if func is _OPS.while_loop:
        condition_of, body, carried, further = args
        with mode:
            while bool(condition_of(*carried, *further)):
                carried = body(*carried, *further)
        return tuple(carried)
    name = func.name()
    if name in _PLAIN:
        with mode:
            return _PLAIN[name](*args, **kwargs)
    formula = _FLEX.get(name)
    if formula is None:
        raise mode.counter.refusal(
            f"FLOPs of the higher-order op '{name}' are not known; call what it wraps without it"
        )
    result = func(*args, **kwargs)
    given = inspect.signature(type(func).__call__).bind(func, *args, **kwargs)
    given.apply_defaults()
    mode.counter.add(f"higher_order::{name}", formula, given.arguments, result)
    return result
