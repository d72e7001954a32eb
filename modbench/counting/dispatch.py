"""Shows a counter every op of PyTorch: each has a formula, contains no matmul, or is an error."""

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

from modbench.counting import higher_order, sdpa
from modbench.counting.checkpoint_flops import see_functions
from modbench.counting.compiled import replace, run_uncompiled
from modbench.counting.formulas import FORMULAS, Formula
from modbench.counting.vector_products import see_vecdot
from modbench.counting.zero_flop_ops import is_free
from modbench.ledger import labels


class AtWork:
    """The counters at work in all threads. What they change in torch holds from the first to the
    last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = 0
        self._undo = ExitStack()
        self._propagation_seen = False
        self._here = threading.local()

    @property
    def here(self) -> int:
        """Number of counters that count in the calling thread."""
        return getattr(self._here, "number", 0)

    def begin(self) -> None:
        self._here.number = self.here + 1
        with self._lock:
            if not self._counters:
                run_uncompiled(self._undo)
                replace(self._undo, labels, "listeners", _in_this_thread)
                replace(self._undo, threading.Thread, "start", _start)
                replace(self._undo, ThreadPoolExecutor, "submit", _submit)
                see_functions(self._undo)
                see_vecdot(self._undo)
                sdpa.watch(True)
                self._undo.callback(sdpa.watch, False)
            self._counters += 1

    def end(self) -> None:
        self._here.number = self.here - 1
        with self._lock:
            self._counters -= 1
            if not self._counters:
                self._undo.close()
                self._propagation_seen = False

    def hide_propagation(self) -> None:
        """Hide from all counters how DTensor infers the shapes of an op's results: the first time, and
        then from a cache, it runs the op on fake tensors of the unsharded shape."""
        with self._lock:
            if self._counters and not self._propagation_seen:
                self._propagation_seen = True
                module = sys.modules.get("torch.distributed.tensor._sharding_prop")
                if module is not None:
                    owner, name = module.ShardingPropagator, "_propagate_tensor_meta_non_cached"
                    replace(self._undo, owner, name, _hidden(getattr(owner, name)))


AT_WORK = AtWork()


def _in_this_thread() -> list[Any]:
    """The calling thread's counters, the innermost last. Torch's own stack of modes also reaches the
    threads in which autograd runs a backward pass on a GPU."""
    modes = _get_current_dispatch_mode_stack()
    return [mode.counter for mode in modes if isinstance(mode, Dispatch)]


def _hidden(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return run


def _start(thread: threading.Thread) -> None:
    """Stands in for `threading.Thread.start`: the counters that are counting in this thread don't count
    what the new one runs, and note if it is more than ops without FLOPs."""
    if _in_this_thread():
        thread.run = _watched(thread.run)  # type: ignore[method-assign]
    _START(thread)


def _submit(pool: ThreadPoolExecutor, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the method of a pool, whose threads may have started before: as `_start`."""
    return _SUBMIT(pool, _watched(function), *args, **kwargs)


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    counters = _in_this_thread()

    def run(*args: Any, **kwargs: Any) -> Any:
        with Uncounted(counters):
            return function(*args, **kwargs)

    return run if counters else function


def _is_free(func: Any) -> bool:
    return isinstance(func, OpOverload) and is_free(func)


class Uncounted(TorchDispatchMode):
    """Tells ``counters`` that the thread runs matmuls which no counter of its own counts."""

    supports_higher_order_operators = True

    def __init__(self, counters: Sequence[Any]) -> None:
        super().__init__()
        self._counters = counters

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (AT_WORK.here or _has_ops_of_its_own(types) or _is_free(func)):
            for counter in self._counters:
                counter.see_other_thread(
                    func._schema.name if isinstance(func, OpOverload) else str(func)
                )
        return func(*args, **(kwargs or {}))


#: An op's name, its arguments' names and defaults, and its formula.
_Known = tuple[str, list[str], dict[str, Any], Formula]

_SOFTMAX_OF_SDPA = torch.ops.aten._safe_softmax.default
_SOFTMAX_BACKWARD = torch.ops.aten._softmax_backward_data.default
_CLONE = torch.ops.aten.clone.default
_MULTIPLY = torch.ops.aten.mul.Tensor
_START = threading.Thread.start
_SUBMIT = ThreadPoolExecutor.submit
_PLAIN = {torch.Tensor, torch.nn.Parameter, FakeTensor}
#: The method of a subclass without ops of its own, such as an uninitialised parameter of a lazy module.
_NO_OPS_OF_ITS_OWN = torch.Tensor.__torch_dispatch__


def _has_ops_of_its_own(types: Any) -> bool:
    return any(
        kind not in _PLAIN and getattr(kind, "__torch_dispatch__", None) is not _NO_OPS_OF_ITS_OWN
        for kind in types
    )


class Dispatch(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, counter: Any) -> None:
        super().__init__()
        self.counter = counter
        # Ops seen so far, and their formulas.
        self._free: set[Any] = set()
        self._formulas: dict[Any, _Known] = {}
        self._number = 0  # that of autograd's next node, when an op was last dispatched

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The default hides __torch_dispatch__ from Dynamo at each call; here Dynamo is at rest anyway.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if types and _has_ops_of_its_own(types):
            AT_WORK.hide_propagation()
            return NotImplemented  # a tensor subclass runs ops of its own, which are dispatched here
        # A node for this op is made before it is dispatched.
        number, before = _get_sequence_nr(), self._number
        if func is not _CLONE:  # by which a lazy conjugate of an operand is resolved after that
            self._number = number
        if func in self._free:
            result = func(*args, **kwargs) if kwargs else func(*args)
        else:
            created = (threading.get_ident(), number - 1) if number > before else None
            result = self._count(func, created, args, kwargs or {})
        if self.counter.functions.running:
            self.counter.functions.see((*args, *(kwargs or {}).values()), result)
        return result

    def _count(self, func: Any, created: tuple[int, int] | None, args: Any, kwargs: Any) -> Any:
        if func is _MULTIPLY:
            result = func(*args, **kwargs)
            self.counter.see_multiplication(created, result)
            return result
        if func is _SOFTMAX_BACKWARD:
            self.counter.see_softmax_backward()
            return func(*args, **kwargs)
        if not isinstance(func, OpOverload):
            return higher_order.run(func, args, kwargs, self)
        known = self._formulas.get(func) or self._look_up(func)
        if known is None:
            if func in self._free:
                return func(*args, **kwargs)
            if func is _SOFTMAX_OF_SDPA:
                if not sdpa.is_watched():
                    raise self.counter.refusal(
                        "attention was not called as torch.nn.functional.scaled_dot_product_attention "
                        "but by a name imported from there before FlopCounter began, and which pairs it "
                        "needs can't be seen; call it through the module"
                    )
                return func(*args, **kwargs)
            # Under inference mode composite ops arrive undecomposed; their parts are counted.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is NotImplemented:
                name = func._schema.name
                raise self.counter.refusal(
                    f"FLOPs of op '{name}' are not known; register them with "
                    f"modbench.register_flop_formula('{name}', formula)"
                )
            return parts
        result = func(*args, **kwargs)
        name, names, defaults, formula = known
        arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        self.counter.add(name, formula, arguments, result, created)
        return result

    def _look_up(self, func: OpOverload) -> "_Known | None":
        name = func._schema.name
        formula = FORMULAS.get(name)
        if formula is None:
            if is_free(func):
                self._free.add(func)
            return None
        names = [argument.name for argument in func._schema.arguments]
        defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        self._formulas[func] = (name, names, defaults, formula)
        return self._formulas[func]
