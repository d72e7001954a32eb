"""Which bytes a computation holds: storages that are alive, and those that autograd keeps.

Works on values and on tensors that have none, for it only looks at storages.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Bytes of the storages that ops made since it was entered: ``now``, and ``peak``, the most there
    were at once. ``weights``, their gradients and ``others`` were there before and don't count."""

    def __init__(self, weights: Iterable[Tensor], others: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._weights: set[int] = set()
        self._before: list[torch.UntypedStorage] = []
        #: Weights in another dtype: what autocast makes of them, and routers that score in float32.
        self._copies: set[int] = set()
        for weight in weights:
            self._weights.add(weight.untyped_storage()._cdata)
            self._before += [t.untyped_storage() for t in (weight, weight.grad) if t is not None]
        self._before += [tensor.untyped_storage() for tensor in others]
        self._old = {storage._cdata for storage in self._before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        if func is torch.ops.aten._to_copy.default and self._is_weight(args[0]):
            self._copies.add(out.untyped_storage()._cdata)
        return out

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._weights

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or key in self._old:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._alive[key]
            self._copies.discard(key)

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    @contextmanager
    def keeping(self) -> Iterator["Kept"]:
        """What autograd keeps for the backward pass of what runs inside."""
        kept = Kept(self)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            yield kept


class Kept:
    """The storages that saved tensors hold, each once."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # A weak reference: what is saved and dropped again within the forward pass isn't kept.
        self._storages[storage._cdata] = weakref.ref(storage)
        return tensor

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def bytes(self, *, copies: bool) -> int:
        """Of copies of weights, or of all else; without what was there before."""
        return sum(
            storage.nbytes()
            for key, reference in self._storages.items()
            if (storage := reference()) is not None
            and key not in self._live._old
            and (key in self._live._copies) is copies
        )
