"""Attention: which query-key pairs it needs, and what its kernels compute.

L queries, S keys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import _disable_current_modes

from modbench.ledger import Flops
from modbench.ledger.cpu_attention import backward_width, executed_pairs


@dataclass(frozen=True)
class Pairs:
    """``allowed`` of ``all`` query-key pairs are needed."""

    allowed: int
    all: int

    def of(self, flops: int) -> int:
        """Return the needed part of the FLOPs of all pairs."""
        return flops * self.allowed // self.all if self.all else flops

    def split(self, flops: int) -> Flops:
        """Return the FLOPs under each convention of matmuls over ``all`` pairs, which cost ``flops``."""
        return Flops(self.of(flops), flops)


def causal_pairs(queries: int, keys: int, ahead: int = 0) -> int:
    """Count the query-key pairs of causal attention in which query i sees keys 0 to i + ``ahead``."""
    blind = max(0, min(queries, -ahead))  # the first queries see nothing
    growing = max(0, min(queries, keys - ahead) - blind)
    first = blind + ahead + 1
    return growing * first + growing * (growing - 1) // 2 + (queries - blind - growing) * keys


def needed_pairs(given: Mapping[str, Any]) -> Pairs | None:
    """Return the pairs that an SDPA call needs: a triangle, what its mask allows, or None for all. A
    mask without values (on the meta device, or fake) allows all, unless it is one of
    `without_values`."""
    query, key, mask = given["query"], given["key"], given.get("attn_mask")
    if query.is_nested:
        return None
    queries, keys = query.shape[-2], key.shape[-2]
    if given.get("is_causal"):
        return Pairs(causal_pairs(queries, keys), queries * keys)
    variant = getattr(mask, "variant", None)  # a CausalBias of torch.nn.attention.bias
    if mask is not None and variant is not None:
        queries, keys = mask.seq_len_q, mask.seq_len_kv
        ahead = keys - queries if variant.name == "LOWER_RIGHT" else 0
        return Pairs(causal_pairs(queries, keys, ahead), queries * keys)
    return allowed_pairs(mask)


def allowed_pairs(mask: Tensor | None) -> Pairs | None:
    """Return the pairs that a mask allows: True in a bool mask; in an additive one all but -inf and its
    dtype's lowest number, which Hugging Face models use instead. Modes and autograd do not see this."""
    if mask is None or has_no_values(mask):
        return getattr(mask, "allowed", None)
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(mask):
        mask = functorch.get_unwrapped(mask)
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        if mask.dtype is not torch.bool:
            mask = mask > torch.finfo(mask.dtype).min
        return Pairs(int(mask.sum()), mask.numel())


def has_no_values(tensor: Tensor) -> bool:
    """Return True for a tensor that can't be read: on the meta device, or fake."""
    return bool(tensor.is_meta or is_fake(tensor))


def without_values(mask: Tensor) -> Tensor:
    """Return ``mask`` on the meta device, annotated with how many pairs it allows."""
    shape = mask.to("meta")
    shape.allowed = allowed_pairs(mask)  # type: ignore[attr-defined]
    return shape


class FusedAttention:
    """The formula of a fused SDPA op. ``in_blocks``: PyTorch's CPU kernel, which skips whole blocks of
    causal attention (`modbench.ledger.cpu_attention`). What other kernels skip is unknown here, and
    their ``executed`` is the square, an upper bound. All of them recompute the scores in the backward
    pass: 2.5 times the forward pass is executed, 2 times is needed."""

    def __init__(self, *, backward: bool = False, in_blocks: bool = False) -> None:
        self._backward, self._in_blocks = backward, in_blocks

    def __call__(self, arguments: Mapping[str, Any], result: Any) -> Flops:
        mask = arguments.get("attn_mask", arguments.get("attn_bias"))
        return self.flops(arguments, needed_pairs({**arguments, "attn_mask": mask}))

    def flops(self, arguments: Mapping[str, Any], needed: Pairs | None) -> Flops:
        query, key, value = arguments["query"], arguments["key"], arguments["value"]
        queries, keys = query.shape[-2], key.shape[-2]
        heads = math.prod(query.shape[:-2])
        width, value_width = query.shape[-1], value.shape[-1]
        pairs = queries * keys
        if self._in_blocks and arguments.get("is_causal"):
            pairs = executed_pairs(queries, keys)
        each = width + value_width
        full = 2 * heads * queries * keys * each * (2 if self._backward else 1)
        if needed is not None and needed.all and full % needed.all:
            return self(arguments, None)  # one of a batch of calls (vmap), which has its own mask
        executed = 2 * heads * pairs * (backward_width(width, value_width) if self._backward else each)
        return Flops(full if needed is None else needed.of(full), full, executed)
