"""Distinguishes the recomputation of a forward pass from the backward pass around it.

That of ``torch.utils.checkpoint`` is recognised by its frames on the stack. That of other code is
recognised by the graph that it records: a backward function of a `torch.autograd.Function` that records
a graph and passes the gradients that it was given on to autograd runs a forward pass again. A loss of
its own has none to pass, or one that the function made itself. Everything else in a backward pass is
counted like any other op.
"""

import inspect
import sys
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._C import _current_autograd_node
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import _engine_run_backward
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointFunction

from modbench.counting.compiled import replace
from modbench.ledger import Flops, labels
from modbench.ledger.labels import Label

ENGINE = _engine_run_backward.__code__
_REENTRANT = CheckpointFunction.backward.__code__
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


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A counted op that a backward function recorded a node for."""

    function: Hashable  #: the node of the backward function that ran the op
    entry: tuple[Label, str]
    flops: Flops


class RecordedOps:
    """The ops that backward functions have recorded and not yet differentiated, by their nodes."""

    def __init__(self) -> None:
        self._ops: dict[tuple[int, int], Recorded] = {}

    def clear(self) -> None:
        self._ops.clear()

    def add(self, node: tuple[int, int], op: Recorded) -> None:
        self._ops[node] = op

    def take(self, outputs: Sequence[Any], function: Hashable, thread: int) -> list[Recorded]:
        """Remove and return the ops under ``outputs`` that the backward function ``function`` ran."""
        numbers = [number for (_, number), op in self._ops.items() if op.function == function]
        nodes = [getattr(output, "grad_fn", None) for output in outputs] if numbers else []
        first = min(numbers, default=0)
        seen = set()
        taken = []
        while nodes:
            node = nodes.pop()
            if node is None or node in seen or node._sequence_nr() < first:
                continue
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
            op = self._ops.get((thread, node._sequence_nr()))
            if op is not None and op.function == function:
                taken.append(self._ops.pop((thread, node._sequence_nr())))
        return taken


def see_differentiation(undo: ExitStack) -> None:
    """Report each graph that a backward function differentiates to the counters of its thread, until
    ``undo`` closes."""
    replace(undo, torch.autograd, "_make_grads", _differentiate)


def _differentiate(outputs: Sequence[Any], gradients: Sequence[Any], **options: Any) -> Any:
    """Stands in for the function in which torch.autograd.grad and backward complete the gradients that
    they were given."""
    node = _current_autograd_node()
    if isinstance(node, BackwardCFunction):
        given = _given_to(node)
        losses: list[Any] = []
        others: list[Any] = []
        for output, gradient in zip(outputs, gradients, strict=False):
            passed_on = isinstance(gradient, Tensor) and _storage(gradient) in given
            (others if passed_on else losses).append(output)
        for counter in labels.listeners():
            counter.differentiate(losses=losses, others=others)
    return _make_grads(outputs, gradients, **options)


def _given_to(node: Any) -> set[int]:
    """Return the storages of the gradients in the arguments of the backward function of ``node``, which
    runs in this thread."""
    code = inspect.unwrap(type(node)._forward_cls.backward).__code__
    arguments = code.co_argcount + bool(code.co_flags & inspect.CO_VARARGS)
    for frame in _frames(threading.get_ident()):
        if frame.f_code is code:
            values = [frame.f_locals.get(name) for name in code.co_varnames[:arguments]]
            return {_storage(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    return set()


def _storage(tensor: Tensor) -> int:
    """Return a number that tensors with one storage share."""
    return int(tensor.untyped_storage()._cdata)
