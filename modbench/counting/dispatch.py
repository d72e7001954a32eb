"""Shows a counter every op of PyTorch: each has a formula, contains no matmul, or is an error."""

import threading
from contextlib import ExitStack
from typing import Any

import torch
from torch._C import _current_autograd_node
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from modbench.counting import higher_order, sdpa
from modbench.counting.compiled import replace, run_uncompiled
from modbench.counting.formulas import FORMULAS, Formula
from modbench.counting.zero_flop_ops import is_free
from modbench.errors import UserError
from modbench.ledger import labels


class AtWork:
    """The counters at work in all threads. What they change in torch holds from the first to the
    last."""

    def __init__(self) -> None:
        self._lock, self._counters, self._undo = threading.Lock(), 0, ExitStack()

    def begin(self) -> None:
        with self._lock:
            if not self._counters:
                run_uncompiled(self._undo)
                replace(self._undo, labels, "listeners", _in_this_thread)
                sdpa.watch(True)
                self._undo.callback(sdpa.watch, False)
            self._counters += 1

    def end(self) -> None:
        with self._lock:
            self._counters -= 1
            if not self._counters:
                self._undo.close()


AT_WORK = AtWork()


def _in_this_thread() -> list[Any]:
    """The calling thread's counters, the innermost last. Torch's own stack of modes also reaches the
    threads in which autograd runs a backward pass on a GPU."""
    modes = _get_current_dispatch_mode_stack()
    return [mode.counter for mode in modes if isinstance(mode, Dispatch)]


#: An op's name, its arguments' names and defaults, and its formula.
_Known = tuple[str, list[str], dict[str, Any], Formula]

_SOFTMAX_OF_SDPA = torch.ops.aten._safe_softmax.default
_SOFTMAX_BACKWARD = torch.ops.aten._softmax_backward_data.default
_MULTIPLY = torch.ops.aten.mul.Tensor
#: Backward nodes that multiply by broadcasting, (N,) by (M,) or a scalar by (N,): dims of the result.
_OUTER_PRODUCTS = {"MvBackward0": 2, "AddmvBackward0": 2, "DotBackward0": 1, "VdotBackward0": 1}
_PLAIN = {torch.Tensor, torch.nn.Parameter, FakeTensor}
#: The method of a subclass without ops of its own, such as an uninitialised parameter of a lazy module.
_NO_OPS_OF_ITS_OWN = torch.Tensor.__torch_dispatch__


class Dispatch(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, counter: Any) -> None:
        super().__init__()
        self.counter = counter
        # Ops seen so far, and their formulas.
        self._free: set[Any] = set()
        self._formulas: dict[Any, _Known] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The default hides __torch_dispatch__ from Dynamo at each call; here Dynamo is at rest anyway.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if types and any(
            kind not in _PLAIN and getattr(kind, "__torch_dispatch__", None) is not _NO_OPS_OF_ITS_OWN
            for kind in types
        ):
            return NotImplemented  # a tensor subclass runs ops of its own, which are dispatched here
        if func in self._free:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if func is _MULTIPLY:
            return self._multiply(args, kwargs)
        if func is _SOFTMAX_BACKWARD:
            self.counter.see_softmax_backward()
            return func(*args, **kwargs)
        if not isinstance(func, OpOverload):
            return higher_order.run(func, args, kwargs, self, self.counter.add)
        known = self._formulas.get(func) or self._look_up(func)
        if known is None:
            if func in self._free:
                return func(*args, **kwargs)
            if func is _SOFTMAX_OF_SDPA:
                if not sdpa.is_watched():
                    raise UserError(
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
                raise UserError(
                    f"FLOPs of op '{name}' are not known; register them with "
                    f"modbench.register_flop_formula('{name}', formula)"
                )
            return parts
        result = func(*args, **kwargs)
        name, names, defaults, formula = known
        arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        self.counter.add(name, formula, arguments, result)
        return result

    def _multiply(self, args: Any, kwargs: Any) -> Any:
        """Run a multiplication; autograd writes some matmuls' backward passes as one."""
        result = _MULTIPLY(*args, **kwargs)
        node = _current_autograd_node()
        if node is not None and result.dim() == _OUTER_PRODUCTS.get(node.name()):
            self.counter.add("aten::mul", lambda arguments, result: 2 * result.numel(), {}, result)
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
