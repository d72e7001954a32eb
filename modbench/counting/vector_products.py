"""Products of vectors that PyTorch writes as pointwise multiplications: the gradients of mv and dot, the
gradients of these, and torch.linalg.vecdot.
"""

import sys
from collections.abc import Hashable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch

from modbench.counting.checkpoint_flops import ENGINE
from modbench.counting.compiled import replace
from modbench.ledger import labels

_VECDOT = torch.linalg.vecdot
_NODES = {"MvBackward0", "AddmvBackward0", "DotBackward0", "VdotBackward0"}


class VectorProducts:
    """Tells such multiplications from others, which cost nothing."""

    def __init__(self) -> None:
        #: Calls of vecdot that are running.
        self.open = 0
        self._nodes: set[Hashable] = set()  # backward nodes of such multiplications

    def include(self, node: Any, key: Hashable) -> bool:
        """Return True if a multiplication that runs now is one: in a call of vecdot, or run by autograd
        itself (not by a hook) in the backward node ``node`` of such a product. ``key`` identifies the
        node."""
        if self.open or node is None:
            return self.open > 0
        return (node.name() in _NODES or key in self._nodes) and _run_by_autograd()

    def differentiate(self, key: Hashable) -> None:
        """Note the backward node of such a multiplication: its gradients are products as well."""
        self._nodes.add(key)


def _run_by_autograd() -> bool:
    """Return True if only dispatch modes and subclasses stand between the op and the autograd engine. In
    a device thread of autograd the stack ends with them."""
    outermost: FrameType = sys._getframe(1)
    frame: FrameType | None = outermost
    while frame is not None and frame.f_code is not ENGINE:
        outermost, frame = frame, frame.f_back
    return outermost.f_code.co_name == "__torch_dispatch__"


def see_vecdot(undo: ExitStack) -> None:
    """Report calls of torch.linalg.vecdot to the counters of their thread until ``undo`` closes. Under
    vmap it arrives decomposed as everywhere else, so that the name itself is replaced."""
    replace(undo, torch.linalg, "vecdot", _vecdot)


def _vecdot(*args: Any, **kwargs: Any) -> Any:
    counters = labels.listeners()
    for counter in counters:
        counter.products.open += 1
    try:
        return _VECDOT(*args, **kwargs)
    finally:
        for counter in counters:
            counter.products.open -= 1
