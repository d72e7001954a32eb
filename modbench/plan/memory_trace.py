"""Tracks the bytes of tensor storages that are alive while code runs, on real or fake tensors."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Bytes of storages allocated inside: ``now``, ``peak``, and ``copies``, the part of ``now`` that
    holds weights in another dtype (autocast, or routers that score in float32). ``weights``, their
    gradients and ``others`` exist before and do not count."""

    def __init__(self, weights: Iterable[Tensor], others: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = self.copies = 0
        weights = list(weights)
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        # Holding them keeps their addresses from being used again.
        self._before = [tensor.untyped_storage() for tensor in (*weights, *gradients, *others)]
        self._known = {storage._cdata for storage in self._before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        cast = func is torch.ops.aten._to_copy.default
        copy = cast and args[0].untyped_storage()._cdata in self._weights
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), copy)
        return out

    def _add(self, storage: torch.UntypedStorage, copy: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._count(size, copy)
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size, copy)

    def _freed(self, key: int, size: int, copy: bool) -> None:
        self._known.discard(key)
        self._count(-size, copy)

    def _count(self, size: int, copy: bool) -> None:
        self.now += size
        self.copies += size if copy else 0
