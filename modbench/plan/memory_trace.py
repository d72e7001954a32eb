"""Tracks the bytes of tensor storages that are alive while code runs, on real or fake tensors."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Bytes of storages allocated inside: ``now`` and ``peak``. Tensors in ``before`` and their
    gradients exist before and do not count."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        before = list(before)
        gradients = [tensor.grad for tensor in before if tensor.is_leaf and tensor.grad is not None]
        # Holding them keeps their addresses from being used again.
        self._before = [tensor.untyped_storage() for tensor in (*before, *gradients)]
        self._known = {storage._cdata for storage in self._before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
