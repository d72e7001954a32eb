"""Tensors that have shapes and storages but no values, so that nothing is allocated, and what counts the
bytes of their storages."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modbench.counting.sdpa import ARGUMENTS, as_on_cpu
from modbench.errors import FAULTS

#: The device whose kernels are assumed.
Kernels = Literal["gpu", "cpu"]

_META, _CPU = torch.device("meta"), torch.device("cpu")
#: Operators that read values; a copy to the host does if it fails.
_READS_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_COPY = torch.ops.aten._to_copy.default


class ReadsValuesError(Exception):
    """An operator failed that reads values."""


class Live(TorchDispatchMode):
    """Bytes of storages allocated inside: ``now`` and ``peak``. Tensors in ``before`` and their
    gradients exist before and do not count.

    Of a model with a unit of layers that repeats, it runs two copies of the unit, and ``peak`` is that
    with ``further`` copies between them. Each copy keeps as many bytes as its neighbour: after it has
    run, those that the first copy allocated; once the second copy has run backward, those of the second.
    """

    def __init__(self, before: Iterable[Tensor] = (), further: int = 0) -> None:
        super().__init__()
        self._further = further
        self.start(before)

    def start(self, before: Iterable[Tensor]) -> None:
        """Count from here on."""
        self.now = self.peak = 0
        self.unit = 0  #: the copy at work; 0: a part outside
        self.kept = 0  #: the copy whose bytes a further copy keeps; 0: none
        self._by_unit = [0, 0, 0]
        before = list(before)
        gradients = [tensor.grad for tensor in before if tensor.is_leaf and tensor.grad is not None]
        # Holding them keeps their addresses from being used again.
        self._before = [_storage(tensor) for tensor in (*before, *gradients)]
        self._known = {storage._cdata for storage in self._before}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports the compiler, which takes a second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            out = self._run(func, args, kwargs or {})
        except FAULTS as error:
            if func is _COPY or _READS_VALUES.intersection(func.tags):
                raise ReadsValuesError(str(func)) from error
            raise
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(_storage(tensor))
        return out

    def _run(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self._by_unit[self.unit] += size
            further = self._further * self._by_unit[self.kept] if self.kept else 0
            self.peak = max(self.peak, self.now + further)
            weakref.finalize(storage, self._freed, key, size, self.unit)

    def _freed(self, key: int, size: int, unit: int) -> None:
        self._known.discard(key)
        self.now -= size
        self._by_unit[unit] -= size


class _Shaped(Tensor):
    """A tensor of the CPU without values, for autocast, which leaves the meta device alone. ``on_meta``
    has its shape and its storage."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    is_meta = True  # type: ignore[assignment]  # routing asks, before it reads values
    on_meta: Tensor

    @staticmethod
    def __new__(cls, on_meta: Tensor) -> "_Shaped":
        shaped: _Shaped = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            on_meta.shape,
            strides=on_meta.stride(),
            storage_offset=on_meta.storage_offset(),
            dtype=on_meta.dtype,
            device=_CPU,
        )
        shaped.on_meta = on_meta
        return shaped

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise ReadsValuesError(str(func))  # outside the pass


def _on_meta(value: Any) -> Any:
    if isinstance(value, _Shaped):
        return value.on_meta
    return [_on_meta(item) for item in value] if type(value) in (list, tuple) else value


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    on_meta: Tensor = _on_meta(tensor)
    return on_meta.untyped_storage()


class Shapes(Live):
    """Runs operators on shapes alone: on tensors of the meta device, or if ``shaped``, on tensors that
    autocast takes for some of the CPU."""

    def __init__(self, further: int, shaped: bool) -> None:
        super().__init__(further=further)
        self._shaped = shaped

    def _run(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if not self._shaped:
            return _result(func, args, kwargs)
        on_meta = [_on_meta(value) for value in args]
        named = {name: _on_meta(value) for name, value in kwargs.items()}
        if "device" in named:
            named["device"] = _META
        # An operator that writes in place returns its argument.
        given = {id(value): shaped for value, shaped in zip(on_meta, args, strict=True)}
        return _wrapped(_result(func, on_meta, named), given)


def _wrapped(out: Any, given: Mapping[int, Any]) -> Any:
    if isinstance(out, Tensor):
        return given[id(out)] if id(out) in given else _Shaped(out)
    return type(out)(_wrapped(item, given) for item in out) if isinstance(out, list | tuple) else out


def _result(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``func`` on tensors of the meta device. By itself, PyTorch computes most shapes there in Python,
    which takes ten times as long and imports its compiler."""
    if func in _RULES:
        return _RULES[func](*args, **kwargs)
    if func.overloadpacket is _ATEN.arange:
        numbers = func(*args, **{**kwargs, "device": "cpu"})
        return _new(numbers.shape, numbers.dtype)
    tensors = [value for value in args if isinstance(value, Tensor)]
    if tensors and func._schema.name.endswith("_"):  # in place
        return args[0]
    if tensors and (torch.Tag.pointwise in func.tags or func in _ELEMENTWISE):
        return _by_element(func, tensors, args, {k: v for k, v in kwargs.items() if k != "device"})
    return func(*args, **kwargs)


def _new(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=_META)


#: Result dtypes of operators by element, by the default dtype and the arguments'.
_DTYPES: dict[Any, torch.dtype] = {}


def _by_element(func: Any, tensors: Sequence[Tensor], args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    rank = max(tensor.dim() for tensor in tensors)
    padded = [(1,) * (rank - tensor.dim()) + tuple(tensor.shape) for tensor in tensors]
    shape = tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))
    kinds = ((a.dtype, a.dim()) if isinstance(a, Tensor) else type(a) for a in args)
    case = (func, torch.get_default_dtype(), *kinds, *kwargs.items())
    if case not in _DTYPES:
        ones = [torch.ones((1,) * a.dim(), dtype=a.dtype) if isinstance(a, Tensor) else a for a in args]
        _DTYPES[case] = func(*ones, **kwargs).dtype
    layout = next((tensor for tensor in tensors if tensor.shape == shape), None)
    if layout is None or kwargs.get("memory_format") is torch.contiguous_format:
        return _new(shape, _DTYPES[case])
    return _laid_out(layout, _DTYPES[case])


def _laid_out(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor without gaps whose dimensions have the order in memory of ``like``."""
    if like.is_contiguous():
        return _new(like.shape, dtype)
    strides, size, of = [0] * like.dim(), 1, like.stride()
    for number in sorted(range(like.dim()), key=lambda number: (of[number], -number)):
        strides[number] = size
        size *= like.shape[number]
    return torch.empty_strided(like.shape, strides, dtype=dtype, device=_META)


def _like(position: int) -> Callable[..., Tensor]:
    return lambda *args, **_: _new(args[position].shape, args[position].dtype)


def _sum(x: Tensor, dims: Any = None, keep: bool = False, **_: Any) -> Tensor:
    away = {dim % x.dim() for dim in dims or range(x.dim())}
    sizes = (1 if number in away else size for number, size in enumerate(x.shape))
    shape = (size for number, size in enumerate(sizes) if keep or number not in away)
    return _new(shape, x.dtype if x.is_floating_point() else torch.int64)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return _new(shape, reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))


def _nll_loss(x: Tensor, targets: Tensor, _weight: Any, reduction: int, *_: Any) -> Any:
    return _new(() if reduction else targets.shape, x.dtype), _new((), x.dtype)


def _attention(query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, _width = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    return _laid_out(query, query.dtype), _new((batch, tokens, heads), dtype).transpose(1, 2)


_ATEN = torch.ops.aten
_ELEMENTWISE = (
    *(_ATEN.empty_like.default, _ATEN.zeros_like.default, _ATEN.ones_like.default),
    _ATEN.floor_divide.default,
)
_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((_ATEN._softmax.default, _ATEN._softmax_backward_data.default), _like(0)),
    **dict.fromkeys((_ATEN._log_softmax.default, _ATEN._log_softmax_backward_data.default), _like(0)),
    **dict.fromkeys((_ATEN.index_add.default, _ATEN.scatter_add.default), _like(0)),
    **dict.fromkeys((_ATEN.sum.default, _ATEN.sum.dim_IntList, _ATEN.logsumexp.default), _sum),
    **dict.fromkeys((_ATEN.mean.default, _ATEN.mean.dim), _sum),
    _ATEN.cumsum.default: lambda x, _: _new(x.shape, x.dtype if x.is_floating_point() else torch.int64),
    _ATEN.amin.default: lambda x, *more: _new(_sum(x, *more).shape, x.dtype),
    _ATEN.nll_loss_forward.default: _nll_loss,
    _ATEN.nll_loss_backward.default: _like(1),
    _ATEN.binary_cross_entropy_with_logits.default: lambda x, *more: _new(
        x.shape if 0 in more[3:] else (), x.dtype
    ),
    _ATEN.mm.default: lambda a, b: _new((a.shape[0], b.shape[1]), a.dtype),
    _ATEN.embedding.default: lambda weight, ids, *_: _new((*ids.shape, weight.shape[1]), weight.dtype),
    _ATEN.gather.default: lambda x, _, index, **__: _new(index.shape, x.dtype),
    _ATEN.sort.stable: lambda x, *_, **__: (_new(x.shape, x.dtype), _new(x.shape, torch.int64)),
    _ATEN.cat.default: _cat,
    _ATEN.stack.default: lambda tensors, dim=0: _cat([each.unsqueeze(dim) for each in tensors], dim),
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default: _attention,
}


class Device(TorchFunctionMode):
    """Makes tensors without values behave as those of a device with ``kernels``."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._gpu = kernels == "gpu"

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            fused = as_on_cpu(dict(zip(ARGUMENTS, args, strict=False)) | (kwargs or {}))
            if fused is not None:  # else, as on a CPU, by matmuls
                return fused
        if self._gpu and func in (F.rms_norm, torch.rms_norm):
            return _fused_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fused_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Any:
    # PyTorch 2.11 takes no keywords.
    return _FusedNorm.apply(x, shape, weight, eps)  # type: ignore[no-untyped-call]


class _FusedNorm(torch.autograd.Function):
    """Storages of PyTorch's RMSNorm on a GPU, which is one kernel: it keeps the input, the weight and
    one float32 factor per row. A CPU runs several ops that keep more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Any, weight: Tensor | None, _eps: float | None) -> Tensor:
        rows = x.shape[: x.dim() - len(shape)]
        ctx.save_for_backward(x, x.new_empty(rows, dtype=torch.float32), weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), None, None if weight is None else torch.empty_like(weight), None
