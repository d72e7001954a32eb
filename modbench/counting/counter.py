"""The closed-world FLOP counter: counts the ops that PyTorch dispatches.

It counts matmul FLOPs, 2 per multiply-accumulate. Every op has a formula, is known to contain no matmul,
or is an error: an unknown op never counts as zero, which is how other counters miss attention on CPUs
and grouped experts.
"""

import threading
from types import TracebackType
from typing import Any

import torch
from torch._C import _current_autograd_node
from torch._C._autograd import _get_sequence_nr
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from modbench.counting import higher_order, sdpa
from modbench.counting.attention import FusedAttention, Pairs
from modbench.counting.checkpoint_flops import engine_runs_here, in_recompute
from modbench.counting.compiled import UNCOMPILED
from modbench.counting.formulas import FORMULAS, Formula, register_flop_formula
from modbench.counting.zero_flop_ops import is_free
from modbench.errors import UserError
from modbench.ledger import CONVENTIONS, Direction, Flops, Ledger, labels
from modbench.ledger.labels import Label

__all__ = ["FlopCounter", "is_free", "register_flop_formula", "seen_conventions"]

#: A label, and the query-key pairs that are needed if it is an attention.
Region = tuple[Label, Pairs | None]
_OUTSIDE: Region = (Label(), None)


def seen_conventions(on: torch.device) -> tuple[str, ...]:
    """Return the conventions in which a count on the device ``on`` can equal a closed form. On a GPU
    ``executed`` cannot: which blocks its kernels skip is not visible."""
    return CONVENTIONS if on.type == "cpu" else ("model", "full")


class FlopCounter:
    """Counts the matmul FLOPs of any PyTorch code that runs inside it, forward and backward.

    >>> with FlopCounter() as counter:
    ...     model(x).sum().backward()
    >>> counter.total

    Three conventions. ``total`` (``full``) counts attention by its full square; ``total_model``
    (``model``) by the query-key pairs it needs: the triangle of causal attention, what a mask or a block
    mask's rule allows. A mask on the meta device has no values, and all its pairs count
    (``unread_masks`` counts such calls). SDPA's backward pass is twice its forward pass in both; neither
    includes recomputation by activation checkpointing. ``executed`` is what PyTorch's CPU kernels run,
    recomputation included: see `modbench.counting.attention.FusedAttention` for what they skip and
    repeat, and for other devices. On the meta device attention runs, and is counted, as on a CPU.

    A counter sees what its own thread runs, with the threads in which autograd runs a backward pass on a
    GPU. Code compiled by torch.compile runs uncompiled while any counter is at work, and is counted as
    written (`modbench.counting.compiled`). A product written as pointwise multiplication and a sum
    counts 0; attention written in matmuls counts as matmuls; code outside PyTorch is not seen. A
    multiply-accumulate of complex numbers counts 2.

    Raises:
        UserError: an op without a formula (`register_flop_formula` adds one), compiled code that can't
        run
            uncompiled, or the counter is entered while it is counting. ``total_model`` and ``ledger``:
            the backward pass of a masked attention, written in matmuls, whose forward pass was not
            counted.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[Label, Direction, str], list[int]] = {}
        # (region, number of the next autograd node, running node) at the time of opening
        self._open: list[tuple[Region, int, Any]] = []
        self._region_of_node: dict[tuple[int, int], Region] = {}  # by thread and number
        self._numbered = 0  # the next node's number, when an op was last counted
        self._mode = _Dispatch(self)
        self._thread: int | None = None  # where it counts, while it does
        self._unseen_forward = False
        #: Attention calls whose mask has no values; they are taken to need all pairs.
        self.unread_masks = 0

    @property
    def total(self) -> int:
        return sum(full for _, full, _ in self._counted.values())

    @property
    def total_model(self) -> int:
        self._check_pairs()
        return sum(model for model, _, _ in self._counted.values())

    @property
    def executed(self) -> int:
        return sum(executed for _, _, executed in self._counted.values())

    @property
    def by_op(self) -> dict[str, int]:
        """FLOPs by op, full square."""
        sums: dict[str, int] = {}
        for (_, direction, op), (_, full, _) in self._counted.items():
            if direction != "recompute":
                sums[op] = sums.get(op, 0) + full
        return sums

    @property
    def ledger(self) -> Ledger:
        """What was counted, by (layer, component, direction), under the labels of
        `modbench.ledger.component`; ops outside all labels are component ``other``."""
        self._check_pairs()
        return self._ledger()

    def _ledger(self) -> Ledger:
        return Ledger.sum(
            Ledger({(label.layer, label.component, direction): Flops(*flops)})
            for (label, direction, _), flops in self._counted.items()
        )

    @property
    def by_component(self) -> dict[str, int]:
        """FLOPs by component, full square."""
        return self._ledger().by_component("full")

    def under(self, convention: str) -> int:
        """The total as ``convention`` counts it."""
        return self.total_model if convention == "model" else self._ledger().total(convention)

    def __enter__(self) -> "FlopCounter":
        if self._thread is not None:
            raise UserError(
                "this FlopCounter is counting already, and would count all twice; take another one, or "
                "enter it again when it has ended"
            )
        _AT_WORK.begin()
        self._thread = threading.get_ident()
        self._mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._mode.__exit__(kind, error, where)
        self._thread = None
        _AT_WORK.end()

    def open(self, label: Label | None, pairs: Pairs | None = None) -> None:
        """Begin a region: forward ops belong to ``label`` (None: the current label) and, if ``pairs`` is
        given, are attention that needs these of its query-key pairs."""
        node = _current_autograd_node()
        region = (self._region(node)[0] if label is None else label, pairs)
        self._open.append((region, _get_sequence_nr(), node))

    def close(self) -> None:
        """End the last region; the autograd nodes created in it stay assigned to it."""
        region, first, _ = self._open.pop()
        thread = threading.get_ident()
        for number in range(first, _get_sequence_nr()):
            # A label inside this one has closed already, and keeps its nodes.
            self._region_of_node.setdefault((thread, number), region)

    def _region(self, node: Any) -> Region:
        """Return the region of an op that runs now: in a backward pass that of its forward op, unless a
        region was opened in the backward pass itself."""
        if node is not None and not (self._open and self._open[-1][2] is not None):
            known = self._region_of_node.get(self._key(node))
            if known is not None:
                return known
        return self._open[-1][0] if self._open else _OUTSIDE

    def _key(self, node: Any) -> tuple[int, int]:
        """The thread that created ``node``, and its number there. On a GPU a backward pass runs in a
        thread of autograd's own, where only checkpointing creates nodes and runs them."""
        thread = threading.get_ident()
        if thread != self._thread and self._thread is not None and not engine_runs_here():
            thread = self._thread
        return thread, node._sequence_nr()

    def see_softmax_backward(self) -> None:
        """Note a masked attention, written out in matmuls, whose forward pass was not counted."""
        node = _current_autograd_node()
        if node is None or node.name() != "SafeSoftmaxBackward0":
            return
        before = node.next_functions[0][0]
        if before is not None and before.name() == "AddBackward0":  # scores + mask
            self._unseen_forward |= self._key(node) not in self._region_of_node

    def _check_pairs(self) -> None:
        if self._unseen_forward:
            raise UserError(
                "the forward pass of a masked attention ran before FlopCounter began, and which pairs "
                "its backward pass needs can't be seen; run the forward pass inside, or use total and "
                "executed"
            )

    def add(self, op: str, formula: Formula, arguments: dict[str, Any], result: Any) -> None:
        """Count an op that has just run."""
        node = _current_autograd_node()
        label, pairs = region = self._region(node)
        direction: Direction = "forward"
        if node is not None:
            recording = torch.is_grad_enabled()
            thread = threading.get_ident() if self._thread is None else self._thread
            again = in_recompute(recording=recording, thread=thread)
            direction = "recompute" if again else "backward"
            if recording and _get_sequence_nr() > self._numbered:  # this op created a node
                key = threading.get_ident(), _get_sequence_nr() - 1
                self._region_of_node.setdefault(key, region)
        self._numbered = _get_sequence_nr()
        if pairs is not None and isinstance(formula, FusedAttention):
            flops: int | Flops = formula.flops(arguments, pairs)
        else:
            flops = formula(arguments, result)
        if not isinstance(flops, Flops) and (type(flops) is not int or flops < 0):
            raise UserError(
                f"the FLOP formula of op '{op}' gave {flops!r}; it must give a whole number, 0 or more"
            )
        counted = self._counted.setdefault((label, direction, op), [0, 0, 0])
        if isinstance(flops, int):
            flops = Flops(flops, flops) if pairs is None else pairs.split(flops)
        if direction != "recompute":
            counted[0] += flops.model
            counted[1] += flops.full
        counted[2] += flops.executed


class _AtWork:
    """The counters at work in all threads. What they change in torch holds from the first to the
    last."""

    def __init__(self) -> None:
        self._lock, self._counters = threading.Lock(), 0

    def begin(self) -> None:
        with self._lock:
            if not self._counters:
                UNCOMPILED.begin()
                labels.listeners = _in_this_thread
                sdpa.watch(True)
            self._counters += 1

    def end(self) -> None:
        with self._lock:
            self._counters -= 1
            if not self._counters:
                sdpa.watch(False)
                labels.listeners = labels.no_listeners
                UNCOMPILED.end()


_AT_WORK = _AtWork()


def _in_this_thread() -> list[FlopCounter]:
    """The calling thread's counters, the innermost last. Torch's own stack of modes also reaches the
    threads in which autograd runs a backward pass on a GPU."""
    modes = _get_current_dispatch_mode_stack()
    return [mode.counter for mode in modes if isinstance(mode, _Dispatch)]


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


class _Dispatch(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, counter: FlopCounter) -> None:
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
        if types and any(kind not in _PLAIN and _has_own_ops(kind) for kind in types):
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
                raise _unknown(func._schema.name)
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


def _has_own_ops(kind: type) -> bool:
    return getattr(kind, "__torch_dispatch__", None) is not _NO_OPS_OF_ITS_OWN


def _unknown(name: str) -> UserError:
    return UserError(
        f"FLOPs of op '{name}' are not known; register them with "
        f"modbench.register_flop_formula('{name}', formula)"
    )
