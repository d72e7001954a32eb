"""The closed-world counter: what PyTorch executes, op by op, as it reaches the dispatcher.

Matmul FLOPs, one multiply-accumulate being 2. Every op is counted, known to be free of matmuls, or an
error: an op that nobody thought of can't pass as zero, which is how other counters lose attention on CPU
and grouped experts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from modbench.errors import UserError
from modbench.flops.free import FREE, FREE_PREFIXES
from modbench.flops.ledger import Flops

#: From the op's arguments by their schema names, to its FLOPs.
Formula = Callable[[Mapping[str, Any]], Flops]


class FlopCounter(TorchDispatchMode):
    """Counts the matmul FLOPs of any PyTorch code that runs inside it, forward and backward.

    >>> with FlopCounter() as counter:
    ...     model(x).sum().backward()
    >>> counter.total

    ``total`` counts attention by its full square (convention ``full``), ``total_model`` causal attention
    by its triangle (convention ``model``; attention with an explicit mask stays a square, since a mask's
    meaning can't be read off its shape). SDPA's backward is twice its forward in both.

    Raises:
        UserError: an op that is neither counted nor known to be free; `register_flop_formula` mends it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_op: dict[str, Flops] = {}

    @property
    def total(self) -> int:
        return sum(flops.full for flops in self._by_op.values())

    @property
    def total_model(self) -> int:
        return sum(flops.model for flops in self._by_op.values())

    @property
    def by_op(self) -> dict[str, int]:
        """FLOPs by op, full square."""
        return {name: flops.full for name, flops in self._by_op.items()}

    def under(self, convention: str) -> int:
        """The total as ``convention`` counts it."""
        return Flops(self.total_model, self.total).under(convention)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        formula = _FORMULAS.get(name)
        if formula is not None:
            flops = formula(_by_name(func, args, kwargs))
            self._by_op[name] = self._by_op.get(name, Flops(0, 0)) + flops
        elif not is_free(func):
            # Under inference mode composite ops arrive whole; their parts are what is counted.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            raise UserError(
                f"FLOPs of op '{name}' are not known; register them with "
                f"modbench.register_flop_formula('{name}', formula)"
            )
        return func(*args, **kwargs)


def register_flop_formula(op: str, formula: Formula) -> None:
    """Count the op called ``op`` (such as ``"mylib::my_matmul"``) by ``formula``, which takes the op's
    arguments by their schema names and returns `Flops`.

    Raises:
        UserError: the op is counted already.
    """
    if op in _FORMULAS:
        raise UserError(f"op '{op}' already has a FLOP formula; remove one of the two registrations")
    _FORMULAS[op] = formula


def is_free(func: OpOverload) -> bool:
    """Whether an op is known to run no matmul: it is pointwise, only views its input, or is listed."""
    if torch.Tag.pointwise in func.tags or func.is_view:
        return True
    name = func._schema.name
    return name in FREE or name.startswith(FREE_PREFIXES)


def _by_name(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _same(flops: int) -> Flops:
    return Flops(flops, flops)


def _matmul(first: str, second: str) -> Formula:
    """(..., N, K) @ (..., K, M), (N, K) @ (K,) or (K,) @ (K,)."""

    def formula(arguments: Mapping[str, Any]) -> Flops:
        left: Tensor = arguments[first]
        right: Tensor = arguments[second]
        columns = right.shape[-1] if right.dim() > 1 else 1
        return _same(2 * left.numel() * columns)

    return formula


def _attention(factor: int) -> Formula:
    """Scores and weighted values; ``factor`` 2 for the backward pass."""

    def formula(arguments: Mapping[str, Any]) -> Flops:
        query, key, value = arguments["query"], arguments["key"], arguments["value"]
        batch, heads, queries, width = query.shape
        keys = key.shape[2]
        per_pair = 2 * batch * heads * (width + value.shape[3]) * factor
        full = queries * keys
        causal = sum(min(row + 1, keys) for row in range(queries))
        return Flops(per_pair * (causal if arguments.get("is_causal") else full), per_pair * full)

    return formula


_SDPA = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")

_FORMULAS: dict[str, Formula] = {
    "aten::mm": _matmul("self", "mat2"),
    "aten::addmm": _matmul("mat1", "mat2"),
    "aten::bmm": _matmul("self", "mat2"),
    "aten::baddbmm": _matmul("batch1", "batch2"),
    "aten::addbmm": _matmul("batch1", "batch2"),
    "aten::mv": _matmul("self", "vec"),
    "aten::addmv": _matmul("mat", "vec"),
    "aten::dot": _matmul("self", "tensor"),
    "aten::vdot": _matmul("self", "other"),
    **{f"aten::_scaled_dot_product_{kind}": _attention(1) for kind in _SDPA},
    **{f"aten::_scaled_dot_product_{kind}_backward": _attention(2) for kind in _SDPA},
}
