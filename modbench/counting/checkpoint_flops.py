"""Tells a forward pass that is run again inside a backward pass from the backward pass itself."""

import sys
from types import FrameType

from torch.autograd.graph import _engine_run_backward

_ENGINE = _engine_run_backward.__code__


def in_recompute(*, recording: bool) -> bool:
    """Whether an op in the middle of a backward pass is a forward pass once more (activation
    checkpointing, torch's or another's), and no part of the backward pass. Only the stack tells: the
    innermost frame of torch's checkpointing or of the engine decides. The latter's own ops record a
    graph only if it was asked for one; where one is ``recording`` and it wasn't, code of another's runs
    a forward pass."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code is _ENGINE:
            # _engine_run_backward(tensors, gradients, retain_graph, create_graph, ...)
            return recording and not frame.f_locals["args"][2]
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False
