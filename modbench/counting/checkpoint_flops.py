"""Distinguishes activation checkpointing's recomputation from the backward pass around it."""

import sys
import threading
from collections.abc import Iterator
from types import FrameType

from torch.autograd.graph import _engine_run_backward
from torch.utils.checkpoint import CheckpointFunction

_ENGINE = _engine_run_backward.__code__
_REENTRANT = CheckpointFunction.backward.__code__


def in_recompute(*, recording: bool, thread: int) -> bool:
    """Return True if an op inside a backward pass recomputes a forward pass (by torch's activation
    checkpointing or another implementation), or takes a gradient inside such a recomputation.

    Only the stack shows it. Between the op and a run of the autograd engine stands either a frame of
    ``torch.utils.checkpoint``, or code that is not torch's and records a graph which the engine was not
    asked for. A reentrant checkpoint also starts the backward pass of what it has recomputed; that run
    of the engine is an ordinary backward pass.

    ``recording``: grad mode at the op. ``thread``: the thread that runs the counted code.
    """
    checkpointed, innermost, starts_engine = False, True, False
    for frame in _frames(thread):
        module = frame.f_globals.get("__name__", "")
        if frame.f_code is _ENGINE:
            # _engine_run_backward(tensors, gradients, retain_graph, create_graph, ...)
            if checkpointed or (innermost and recording and not frame.f_locals["args"][2]):
                return True
            innermost, starts_engine = False, True
        elif starts_engine and (module == "torch.autograd" or module == "torch._tensor"):
            continue
        else:
            if module == "torch.utils.checkpoint":
                checkpointed |= not (starts_engine and frame.f_code is _REENTRANT)
            starts_engine = False
    return False


def engine_runs_here() -> bool:
    """Return True if the calling thread itself started the backward pass it is in."""
    return any(frame.f_code is _ENGINE for frame in _frames(threading.get_ident()))


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
