"""Reports calls of scaled_dot_product_attention before PyTorch decomposes them: where no fused kernel
runs, the dispatcher only sees matmuls, and neither a mask nor a triangle.

While a counter is at work, the function is replaced in the modules where code looks it up. A function
mode would be the official way, but PyTorch disables it during a backward pass (and the recomputation in
it), and nn.MultiheadAttention and nn.TransformerEncoder take another path under one.

Function modes and tensor subclasses compare the function with PyTorch's own, which is put back for their
calls. A call by another thread in that moment is not reported: it is counted by the fused op's own
arguments, or is an error.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from modbench.counting.attention import needed_pairs
from modbench.ledger import labels

SDPA = torch._C._nn.scaled_dot_product_attention
ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_FLASH = 1  # torch.nn.attention.SDPBackend.FLASH_ATTENTION
_inside = threading.local()
_fused_on_cpu: dict[Any, bool] = {}


class _Places:
    """Which function the names in torch refer to, in all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watching = False
        self._original = 0

    def watch(self, on: bool) -> None:
        with self._lock:
            self._watching = on
            self._put()

    @contextmanager
    def original(self) -> Iterator[None]:
        """Restore torch's function while it runs: function modes and tensor subclasses compare with
        it."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, calls: int) -> None:
        with self._lock:
            self._original += calls
            self._put()

    def _put(self) -> None:
        function: Any = _attend if self._watching and not self._original else SDPA
        for module in (torch._C._nn, torch.nn.functional):
            module.scaled_dot_product_attention = function  # type: ignore[attr-defined]


_PLACES = _Places()
#: Start or stop reporting each SDPA call to the counters of its thread.
watch = _PLACES.watch


def is_watched() -> bool:
    """Return True while a reported call runs in this thread."""
    return getattr(_inside, "call", False)


def _attend(*args: Any, **kwargs: Any) -> Any:
    given = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
    overridden = torch.overrides.has_torch_function(tuple(given.values()))
    counters = () if is_watched() else labels.listeners()
    with _PLACES.original() if overridden else nullcontext():
        if not counters:
            return SDPA(*args, **kwargs)
        needed = needed_pairs(given)
        mask = given.get("attn_mask")
        for counter in counters:
            counter.open(None, needed)
            counter.unread_masks += mask is not None and needed is None
        _inside.call = True
        try:
            if given["query"].is_meta and type(mask) is Tensor and not mask.is_meta:
                # Read above; the meta device takes none with values.
                args, kwargs = (), given | {"attn_mask": mask.to("meta")}
            result = as_on_cpu(given | kwargs)
            return SDPA(*args, **kwargs) if result is None else result
        finally:
            _inside.call = False
            for counter in reversed(counters):
                counter.close()


def as_on_cpu(given: Mapping[str, Any]) -> Tensor | None:
    """Run attention on the meta device by the op that a CPU would run, so that both devices show the
    same ops: by itself the meta device decomposes it into matmuls that no CPU executes. Return None if a
    CPU runs matmuls as well, and on other devices."""
    tensors: tuple[Any, ...] = tuple(given.get(name) for name in ARGUMENTS[:4])
    query, key, value, mask = tensors
    if not all(t is None or (type(t) in _PLAIN and t.is_meta and not t.is_nested) for t in tensors):
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    dropout = given.get("dropout_p", 0.0)
    causal = given.get("is_causal", False)
    grouped = given.get("enable_gqa", False)
    enabled = torch.backends.cuda.flash_sdp_enabled()
    case = (*map(_layout, tensors), dropout > 0, causal, grouped, enabled)
    if case not in _fused_on_cpu:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            q, k, v, m = map(_twin, tensors)
            choice = torch._fused_sdp_choice(q, k, v, m, dropout, causal, enable_gqa=grouped)
        _fused_on_cpu[case] = choice == _FLASH
    if not _fused_on_cpu[case]:
        return None
    if mask is not None and mask.dtype is torch.bool:
        mask = torch.empty_like(mask, dtype=query.dtype)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    return attend(query, key, value, dropout, causal, attn_mask=mask, scale=given.get("scale"))[0]


_PLAIN = (Tensor, torch.nn.Parameter)


def _layout(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return tensor.shape, tensor.dtype, tensor.stride()[-1:], tensor.requires_grad


def _twin(tensor: Tensor | None) -> Any:
    """Return a CPU tensor of the same shape, in the memory of one row, to ask PyTorch which kernel it
    would run."""
    if tensor is None:
        return None
    last = tensor.stride()[-1:]
    size = max((tensor.shape[-1] - 1) * last[0] + 1, 1) if last else 1
    twin = torch.empty(size, dtype=tensor.dtype).as_strided(
        tensor.shape, (0,) * (tensor.dim() - 1) + last
    )
    return twin.requires_grad_() if tensor.requires_grad else twin
