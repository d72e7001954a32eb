"""Distinguishes the recomputation of a forward pass from the backward pass around it.

That of ``torch.utils.checkpoint`` is recognised by its frames on the stack. That of other code is
recognised by what it runs again: an op that a backward function of a `torch.autograd.Function` records
and differentiates is recomputation if the forward function of the same call ran one of as many FLOPs,
and read or made each of its operands that no backward function made. Each op of the forward function is
run again once. If the forward function ran before the counter began, what is differentiated
with gradients passed to autograd is recomputation. Everything else in a backward pass is counted like
any other op.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _get_sequence_nr
from torch.autograd.function import BackwardCFunction, _SingleLevelFunction
from torch.autograd.graph import _engine_run_backward
from torch.utils.checkpoint import CheckpointFunction

from modbench.counting.compiled import replace
from modbench.ledger import Direction, Flops, labels

ENGINE = _engine_run_backward.__code__
_REENTRANT = CheckpointFunction.backward.__code__
_STAGE = "torch.distributed.pipelining.stage"
#: Functions of that module; the first is that of PyTorch before 2.13.
_INFERENCE = {"_shape_inference", "_forward_metadata_inference", "_backward_metadata_inference"}
_make_grads = torch.autograd._make_grads  # type: ignore[attr-defined]


def in_checkpoint(thread: int) -> bool:
    """Return True if an op inside a backward pass is part of what ``torch.utils.checkpoint`` runs again:
    one of its frames stands between the op and a run of the autograd engine. A reentrant checkpoint also
    starts the backward pass of what it has recomputed; that run of the engine is an ordinary backward
    pass. ``thread``: the thread that runs the counted code."""
    checkpointed, starts_engine = False, False
    for frame in _frames(thread):
        module = frame.f_globals.get("__name__", "")
        if frame.f_code is ENGINE:
            if checkpointed:
                return True
            starts_engine = True
        elif starts_engine and (module == "torch.autograd" or module == "torch._tensor"):
            continue
        else:
            if module == "torch.utils.checkpoint":
                checkpointed |= not (starts_engine and frame.f_code is _REENTRANT)
            starts_engine = False
    return False


def infers_shapes(thread: int) -> bool:
    """Return True if an op is part of the run, before the first step, by which a stage of
    torch.distributed.pipelining learns what shapes it sends. ``thread``: as above."""
    return _STAGE in sys.modules and any(
        frame.f_code.co_name in _INFERENCE and frame.f_globals.get("__name__") == _STAGE
        for frame in _frames(thread)
    )


def engine_runs_here() -> bool:
    """Return True if the calling thread itself started the backward pass it is in."""
    return any(frame.f_code is ENGINE for frame in _frames(threading.get_ident()))


def _frames(thread: int) -> Iterator[FrameType]:
    """Yield the stack from the innermost frame outwards; in one of autograd's device threads, then that
    of ``thread``, which waits for it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
    if thread != threading.get_ident():
        frame = sys._current_frames().get(thread)
        while frame is not None:
            yield frame
            frame = frame.f_back


#: An autograd node: the thread that created it, and its number there.
Node = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A counted op that a backward function recorded in a graph."""

    add: Callable[[Direction, Flops], None]  #: adds FLOPs of the op to the counter
    flops: Flops
    read: set[int]  #: storages of its operands that no backward function made
    again: bool  #: an operand is what a forward function read or made, or was computed from that


@dataclass(frozen=True, kw_only=True, eq=False)
class Forward:
    """A run of a forward function of a `torch.autograd.Function`."""

    node: Node
    thread: int
    ops: Counter[int] = field(default_factory=Counter)  #: number of ops by their FLOPs
    storages: set[int] = field(default_factory=set)  #: those of all tensors that its ops read or made


@dataclass(frozen=True, kw_only=True, eq=False)
class Backward:
    """A run of a backward function."""

    thread: int
    forward: Forward | None  #: None if it ran before the counter began
    left: Counter[int]  #: of the ops of ``forward``, those not yet run again
    recorded: dict[Node, list[Recorded]] = field(default_factory=dict)  #: and not yet differentiated

    def differentiate(self, outputs: Sequence[Any], gradients: Sequence[Any]) -> None:
        """Count what was recorded to compute ``outputs`` and is recomputation as such."""
        for output, gradient in zip(outputs, gradients, strict=False):
            for op in self._take(output):
                if self.forward is None:
                    again = gradient is not None
                else:
                    known = op.again and op.read <= self.forward.storages
                    again = known and self.left[op.flops.full] > 0
                if again:
                    self.left[op.flops.full] -= 1
                    op.add("backward", op.flops * -1)
                    op.add("recompute", op.flops)

    def _take(self, output: Any) -> list[Recorded]:
        """Remove and return the ops recorded to compute ``output``."""
        first = min((number for _, number in self.recorded), default=0)
        nodes = [getattr(output, "grad_fn", None)] if self.recorded else []
        seen = set()
        taken = []
        while nodes:
            node = nodes.pop()
            if node is None or node in seen or node._sequence_nr() < first:
                continue
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
            taken += self.recorded.pop((self.thread, node._sequence_nr()), [])
        return taken


class Functions:
    """The functions of `torch.autograd.Function` that run under a counter."""

    def __init__(self) -> None:
        self._forwards: dict[Node, Forward] = {}
        # Storages that backward functions of this backward pass made, and those made from no tensor.
        self._made: set[int] = set()
        self._drawn: set[int] = set()
        self._derived: set[int] = set()  # and those computed from what a forward function had
        #: Those that are running, in all threads; an inner one stands after an outer one.
        self.running: list[Forward | Backward] = []

    def begin_forward(self, node: Node) -> None:
        if not any(isinstance(function, Backward) for function in self.running):
            self._made.clear()
            self._drawn.clear()
            self._derived.clear()
        self._forwards[node] = Forward(node=node, thread=threading.get_ident())
        self.running.append(self._forwards[node])

    def begin_backward(self, node: Node) -> None:
        forward = self._forwards.get(node)
        left = Counter(forward.ops if forward else ())
        self.running.append(Backward(thread=threading.get_ident(), forward=forward, left=left))

    def end(self) -> None:
        self.running.remove(self._here()[-1])

    def _here(self) -> list[Forward | Backward]:
        thread = threading.get_ident()
        return [function for function in self.running if function.thread == thread]

    def see(self, arguments: Iterable[Any], result: Any) -> None:
        """Note the tensors of an op that has run."""
        read = {_storage(tensor) for tensor in _tensors(arguments)}
        made = {_storage(tensor) for tensor in _tensors((result,))} - read
        for function in self._here():
            if isinstance(function, Forward):
                function.storages.update(read, made)
            else:
                self._made |= made
                if read & self._derived or (function.forward and read & function.forward.storages):
                    self._derived |= made
                self._drawn = self._drawn - made if read else self._drawn | made

    def count(
        self,
        flops: Flops,
        arguments: Mapping[str, Any],
        node: Node | None,
        add: Callable[[Direction, Flops], None] | None,
    ) -> None:
        """Note a counted op. ``node``: the one that autograd made for it. ``add`` is None for an op that
        is no part of a backward pass, or recomputation already."""
        backward, in_forward = None, False
        for function in self._here():
            if isinstance(function, Backward):
                backward, in_forward = function, False
                continue
            function.ops[flops.full] += 1
            if not in_forward:  # autograd sees the outermost function and nothing inside it
                node, in_forward = function.node, True
        if add is not None and backward is not None and node is not None:
            had = self._derived | (backward.forward.storages if backward.forward else set())
            again = any(_storage(tensor) in had for tensor in _tensors(arguments.values()))
            op = Recorded(add=add, flops=flops, read=self._given(arguments), again=again)
            backward.recorded.setdefault(node, []).append(op)

    def _given(self, arguments: Mapping[str, Any]) -> set[int]:
        """Return the storages of the operands that no backward function made, or one made as weights to
        train."""
        given = set()
        for tensor in _tensors(arguments.values()):
            storage = _storage(tensor)
            leaf = tensor if tensor._base is None else tensor._base
            trained = storage in self._drawn and leaf.is_leaf and leaf.requires_grad
            if trained or storage not in self._made:
                given.add(storage)
        return given

    def differentiate(self, outputs: Sequence[Any], gradients: Sequence[Any]) -> None:
        """Note that the running function is about to differentiate ``outputs``."""
        function = self._here()[-1] if self.running else None
        if isinstance(function, Backward):
            function.differentiate(outputs, gradients)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors with a storage among the arguments or results of an op."""
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            if value.layout == torch.strided:
                tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors += _tensors(value)
    return tensors


def _storage(tensor: Tensor) -> int:
    """Return a number that tensors with one storage share."""
    return int(tensor.untyped_storage()._cdata)


def see_functions(undo: ExitStack) -> None:
    """Report what functions of `torch.autograd.Function` run and differentiate to the counters of their
    thread, until ``undo`` closes."""
    # All calls come by here, also those by a name such as ``function = Function.apply`` from before.
    undo.callback(delattr, _SingleLevelFunction, "apply")
    _SingleLevelFunction.apply = classmethod(_forward)  # type: ignore[attr-defined]
    for name in ("apply", "apply_boxed"):  # the second is new in PyTorch 2.13
        if hasattr(BackwardCFunction, name):
            replace(undo, BackwardCFunction, name, _backward(getattr(BackwardCFunction, name)))
    replace(undo, torch.autograd, "_make_grads", _differentiate)


def _forward(function: Any, *args: Any, **kwargs: Any) -> Any:
    counters = labels.listeners()
    for counter in counters:
        counter.functions.begin_forward((threading.get_ident(), _get_sequence_nr()))
    try:
        return super(_SingleLevelFunction, function).apply(*args, **kwargs)
    finally:
        for counter in counters:
            counter.functions.end()


def _backward(run: Callable[..., Any]) -> Callable[..., Any]:
    def seen(node: Any, *gradients: Any) -> Any:
        counters = labels.listeners()
        for counter in counters:
            counter.functions.begin_backward(counter.key(node))
        try:
            return run(node, *gradients)
        finally:
            for counter in counters:
                counter.functions.end()

    return seen


def _differentiate(outputs: Sequence[Any], gradients: Sequence[Any], **options: Any) -> Any:
    """Stands in for the function in which torch.autograd.grad and backward complete the gradients that
    they were given."""
    for counter in labels.listeners():
        counter.functions.differentiate(outputs, gradients)
    return _make_grads(outputs, gradients, **options)
