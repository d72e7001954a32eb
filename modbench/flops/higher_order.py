"""Ops that take programs: control flow counts by the branch taken."""

from typing import Any

import torch

from modbench.errors import UserError


def run(func: Any, args: Any, kwargs: Any, mode: Any) -> Any:
    """Runs a higher-order op with ``mode`` watching the programs inside it.

    Raises:
        UserError: an op whose programs aren't known to be run from here.
    """
    if func is torch.ops.higher_order.cond:
        condition, yes, no, operands = args
        with mode:
            return (yes if bool(condition) else no)(*operands)
    if func is torch.ops.higher_order.while_loop:
        condition_of, body, carried, further = args
        with mode:
            while bool(condition_of(*carried, *further)):
                carried = body(*carried, *further)
        return tuple(carried)
    raise UserError(
        f"FLOPs of the higher-order op '{func.name()}' are not known; call what it wraps outside of it"
    )
