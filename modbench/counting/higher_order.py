"""Ops that take programs: control flow counts by the branch taken, flex attention by its mask."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from modbench.counting.flex import FlexAttention
from modbench.counting.formulas import Formula
from modbench.errors import UserError

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
    carry, rows = tuple(start), []
    if not over or not len(over[0]):
        from torch._higher_order_ops.scan import generic_scan

        return generic_scan(combine, start, over, additional_inputs=further)
    for number in range(len(over[0])):
        slices = (each.select(0, number) for each in over)
        given, shape = tree_flatten(combine(*carry, *slices, *further))
        carry = tuple(given[: len(carry)])
        rows.append(given[len(carry) :])
    besides = (None if of[0] is None else torch.stack(of) for of in zip(*rows, strict=True))
    flat = (*carry, *besides)
    return tree_unflatten(flat, shape) if isinstance(combine, functools.partial) else flat


def _map(program: Any, over: Any, further: Any, **options: Any) -> Any:
    """``options``: arguments of later PyTorch versions."""
    from torch._higher_order_ops.map import map_dense

    return map_dense(program, over, further, **options)


#: Ops that run their program once per slice.
_PLAIN: dict[str, Callable[..., Any]] = {"scan": _scan, "map_impl": _map}


def run(func: Any, args: Any, kwargs: Any, mode: Any, add: Callable[..., None]) -> Any:
    """Run a higher-order op with the programs inside it under ``mode``; ``add`` counts the op's own
    FLOPs.

    Raises:
        UserError: an unknown higher-order op.
    """
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
        raise UserError(
            f"FLOPs of the higher-order op '{name}' are not known; call what it wraps without it"
        )
    result = func(*args, **kwargs)
    given = inspect.signature(type(func).__call__).bind(func, *args, **kwargs)
    given.apply_defaults()
    add(f"higher_order::{name}", formula, given.arguments, result)
    return result
