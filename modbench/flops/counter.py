"""The closed-world counter: what PyTorch executes, op by op, as it reaches the dispatcher.

Matmul FLOPs, one multiply-accumulate being 2. Every op is counted, known to be free of matmuls, or an
error: an op that nobody thought of can't pass as zero, which is how other counters lose attention on CPU
and grouped experts.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr
from torch._ops import HigherOrderOperator, OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from modbench.errors import UserError
from modbench.flops import component
from modbench.flops.component import Label
from modbench.flops.formulas import FORMULAS, causal_pairs, register_flop_formula
from modbench.flops.free import FREE, FREE_PREFIXES
from modbench.flops.ledger import Direction, Flops, Ledger

__all__ = ["FlopCounter", "is_free", "register_flop_formula"]


class FlopCounter:
    """Counts the matmul FLOPs of any PyTorch code that runs inside it, forward and backward.

    >>> with FlopCounter() as counter:
    ...     model(x).sum().backward()
    >>> counter.total

    ``total`` counts attention by its full square (convention ``full``), ``total_model`` causal
    attention (SDPA with ``is_causal``) by its triangle (convention ``model``; attention with an explicit
    mask stays a square, since a mask's meaning can't be read off its shape). SDPA's backward is twice
    its forward in both. Activation checkpointing's recompute is in neither; ``executed`` is ``total``
    with it.

    A product written out as pointwise multiplication and a sum is no matmul op and counts 0, and code
    outside PyTorch isn't seen.

    Raises:
        UserError: an op that is neither counted nor known to be free; `register_flop_formula` mends it.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[Label, Direction, str], Flops] = {}
        self._recomputed = 0
        self._open: list[tuple[Label, int]] = []
        self._label_of_node: dict[int, Label] = {}
        self._modes = (_Functions(self), _Dispatch(self))

    @property
    def total(self) -> int:
        return sum(flops.full for flops in self._counted.values())

    @property
    def total_model(self) -> int:
        return sum(flops.model for flops in self._counted.values())

    @property
    def executed(self) -> int:
        return self.total + self._recomputed

    @property
    def by_op(self) -> dict[str, int]:
        """FLOPs by op, full square."""
        sums: dict[str, int] = {}
        for (_, _, op), flops in self._counted.items():
            sums[op] = sums.get(op, 0) + flops.full
        return sums

    @property
    def ledger(self) -> Ledger:
        """What was counted, by (layer, component, direction), under the labels of
        `modbench.flops.component.component`; what ran outside all labels is component ``other``."""
        ledger = Ledger()
        for (label, direction, _), flops in self._counted.items():
            key = (label.layer, label.component, direction)
            ledger.entries[key] = ledger.entries.get(key, Flops(0, 0)) + flops
        return ledger

    @property
    def by_component(self) -> dict[str, int]:
        """FLOPs by component, full square."""
        return self.ledger.by_component("full")

    def under(self, convention: str) -> int:
        """The total as ``convention`` counts it."""
        return Flops(self.total_model, self.total).under(convention)

    def __enter__(self) -> "FlopCounter":
        component.active.append(self)
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, where)
        component.active.remove(self)

    def open(self, label: Label) -> None:
        """From here on forward ops belong to ``label``."""
        self._open.append((label, _get_sequence_nr()))

    def close(self) -> None:
        """The label that was opened last ends; the autograd nodes made under it stay its own."""
        label, first = self._open.pop()
        for node in range(first, _get_sequence_nr()):
            self._label_of_node.setdefault(node, label)  # an inner label closed first, and keeps its own

    def innermost(self) -> Label:
        """The label of the op that runs now."""
        if self._open:
            return self._open[-1][0]
        node = torch._C._current_autograd_node()
        return Label() if node is None else self._label_of_node.get(node._sequence_nr(), Label())

    def add(self, op: str, full: int) -> None:
        label = self.innermost()
        in_backward = torch._C._current_autograd_node() is not None
        if in_backward and torch.is_grad_enabled() and _in_recompute():
            self._recomputed += full
            return
        causal, pairs = label.pairs or (1, 1)
        direction: Direction = "backward" if in_backward else "forward"
        key = (replace(label, pairs=None), direction, op)
        flops = Flops(full * causal // pairs, full)
        self._counted[key] = self._counted.get(key, Flops(0, 0)) + flops


class _Functions(TorchFunctionMode):
    """Sees causal attention before it is taken apart: on some devices and dtypes the dispatcher is only
    shown the matmuls."""

    def __init__(self, counter: FlopCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch._C._nn.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(_SDPA_ARGUMENTS, args, strict=False)) | kwargs
        pairs = None
        if given.get("is_causal"):
            queries, keys = given["query"].shape[-2], given["key"].shape[-2]
            pairs = (causal_pairs(queries, keys), queries * keys)
        self._counter.open(replace(self._counter.innermost(), pairs=pairs))
        try:
            return func(*args, **kwargs)
        finally:
            self._counter.close()


_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class _Dispatch(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, counter: FlopCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        name = func._schema.name
        formula = FORMULAS.get(name)
        if formula is None and not is_free(func):
            # Under inference mode composite ops arrive whole; their parts are what is counted.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            raise _unknown(name)
        result = func(*args, **kwargs)
        if formula is not None:
            self._counter.add(name, formula(_by_name(func, args, kwargs), result))
        return result

    def _higher_order(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """Control flow by the branch taken."""
        if func is torch.ops.higher_order.cond:
            condition, yes, no, operands = args
            with self:
                return (yes if bool(condition) else no)(*operands)
        if func is torch.ops.higher_order.while_loop:
            condition_of, body, carried, further = args
            with self:
                while bool(condition_of(*carried, *further)):
                    carried = body(*carried, *further)
            return tuple(carried)
        raise _unknown(func.name())


def is_free(func: OpOverload) -> bool:
    """Whether an op is known to run no matmul: it is pointwise, only views its input, or is listed."""
    if torch.Tag.pointwise in func.tags or func.is_view:
        return True
    name = func._schema.name
    return name in FREE or name.startswith(FREE_PREFIXES)


def _unknown(name: str) -> UserError:
    return UserError(
        f"FLOPs of op '{name}' are not known; register them with "
        f"modbench.register_flop_formula('{name}', formula)"
    )


def _by_name(func: OpOverload, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _in_recompute() -> bool:
    """Whether activation checkpointing runs a forward pass again, in the middle of a backward pass. Only
    its own frames on the stack tell that from a backward pass that builds a graph."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
