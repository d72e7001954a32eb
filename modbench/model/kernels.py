"""Elementwise parts of the expert kernels."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _swiglu(up: Tensor) -> Tensor:
    gate, value = up.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)


def _swiglu_backward(gradient: Tensor, up: Tensor) -> Tensor:
    gate, value = up.chunk(2, dim=-1)
    out = torch.empty_like(up)
    of_gate, of_value = out.chunk(2, dim=-1)
    torch.mul(gradient, F.silu(gate), out=of_value)
    torch.ops.aten.silu_backward.grad_input(gradient * value, gate, grad_input=of_gate)
    return out


def activation(up_NC: Tensor, mlp: str, *, kept_NF: Tensor, out_NF: Tensor) -> Tensor:
    """The hidden layer from the matmul into it, (N, 2F) -> (N, F) of SwiGLU, or (N, F) of GELU, by hand:
    not to be differentiated. It lies in ``out_NF`` or in ``kept_NF``, which after it holds what
    `activation_again` and `activation_backward` take; the two may be one where neither comes."""
    if mlp != "swiglu":
        torch.ops.aten.gelu.out(up_NC, out=kept_NF)
        return kept_NF
    gate_NF, value_NF = up_NC.chunk(2, dim=-1)
    torch.ops.aten.silu.out(gate_NF, out=kept_NF)
    return torch.mul(kept_NF, value_NF, out=out_NF)


def activation_again(up_NC: Tensor, mlp: str, *, kept_NF: Tensor, out_NF: Tensor) -> Tensor:
    """The same from what is kept."""
    if mlp != "swiglu":
        return kept_NF
    return torch.mul(kept_NF, up_NC.chunk(2, dim=-1)[1], out=out_NF)


def activation_backward(
    gradient_NF: Tensor, up_NC: Tensor, mlp: str, *, kept_NF: Tensor, out_NC: Tensor
) -> None:
    """``out_NC`` becomes the gradient of ``up_NC`` from that of the hidden layer, which is used up;
    ``kept_NF`` may be its second half."""
    if mlp != "swiglu":
        torch.ops.aten.gelu_backward.grad_input(gradient_NF, up_NC, grad_input=out_NC)
        return
    gate_NF, value_NF = up_NC.chunk(2, dim=-1)
    of_gate_NF, of_value_NF = out_NC.chunk(2, dim=-1)
    torch.mul(gradient_NF, kept_NF, out=of_value_NF)
    torch.ops.aten.silu_backward.grad_input(gradient_NF.mul_(value_NF), gate_NF, grad_input=of_gate_NF)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast makes of ``x`` in a matmul; None: nothing, as of float64. The meta device knows
    none."""
    kind = x.device.type
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def as_it_is(x: Tensor) -> AbstractContextManager[Any]:
    """Inside there is no autocast: what comes is of the dtype that it is to have. The meta device knows
    none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
