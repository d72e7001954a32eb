"""Sees calls of scaled_dot_product_attention before they are taken apart: where no fused kernel takes
one, the dispatcher is only shown matmuls, and neither a mask nor a triangle.

The function is replaced where code looks it up while a counter is at work. A function mode would be the
official way, but torch leaves it while a backward pass runs (and activation checkpointing's recompute in
it), and with one nn.MultiheadAttention and nn.TransformerEncoder don't take the path that they take
otherwise.
"""

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from modbench.counting.attention import needed_pairs
from modbench.ledger import labels

SDPA = torch._C._nn.scaled_dot_product_attention
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_PLACES = (torch._C._nn, torch.nn.functional)
_FLASH = 1  # torch.nn.attention.SDPBackend.FLASH_ATTENTION
_inside = threading.local()
_fused_on_cpu: dict[Any, bool] = {}


def watch() -> None:
    """From here on each call tells the counters at work which query-key pairs it needs, if there is
    one."""
    _put(_attend if labels.active else SDPA)


def is_watched() -> bool:
    """Whether what runs now is part of a call that was seen."""
    return getattr(_inside, "call", False)


def _put(function: Any) -> None:
    for place in _PLACES:
        place.scaled_dot_product_attention = function  # type: ignore[attr-defined]


def _attend(*args: Any, **kwargs: Any) -> Any:
    if is_watched():
        return SDPA(*args, **kwargs)
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    counters, needed = tuple(labels.active), needed_pairs(given)
    for counter in counters:
        counter.open(None, needed)
    _inside.call = True
    _put(SDPA)  # function modes and tensor subclasses know the call by it
    try:
        result = as_on_cpu(given)
        return SDPA(*args, **kwargs) if result is None else result
    finally:
        _inside.call = False
        watch()
        for counter in reversed(counters):
            counter.close()


def as_on_cpu(given: Mapping[str, Any]) -> Tensor | None:
    """Attention on the meta device by the op that a CPU would run, so that both devices show the same
    ops: left alone, the meta device takes it apart into matmuls that no CPU executes. None where a CPU
    runs matmuls, too, and on other devices."""
    tensors: tuple[Any, ...] = tuple(given.get(name) for name in _ARGUMENTS[:4])
    query, key, value, mask = tensors
    if not all(t is None or (type(t) in _PLAIN and t.is_meta and not t.is_nested) for t in tensors):
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    dropout, causal = given.get("dropout_p", 0.0), given.get("is_causal", False)
    grouped, enabled = given.get("enable_gqa", False), torch.backends.cuda.flash_sdp_enabled()
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
    """A CPU tensor of the same shape, for PyTorch to say what it would run, in the memory of one row."""
    if tensor is None:
        return None
    last = tensor.stride()[-1:]
    size = max((tensor.shape[-1] - 1) * last[0] + 1, 1) if last else 1
    twin = torch.empty(size, dtype=tensor.dtype).as_strided(
        tensor.shape, (0,) * (tensor.dim() - 1) + last
    )
    return twin.requires_grad_() if tensor.requires_grad else twin
