"""The elementwise parts of a block, each with a backward pass of its own: autograd's, step by step,
would read and write the stream two to three times as often and keep every step. Differentiable once.

No matmul: nothing here is counted. The plain twins are in the tests.

N tokens, any shape before D; D model width; F hidden width; P width of a head.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019, equation 4), computed in float32
    or wider. PyTorch's own is one kernel on a GPU, and the faster one where no gradient is needed."""

    def forward(self, x_ND: Tensor) -> Tensor:
        if x_ND.is_cuda or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(x_ND)
        epsilon = torch.finfo(x_ND.dtype).eps if self.eps is None else self.eps
        return _RMSNorm.apply(x_ND, self.weight, epsilon)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        norm_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True, dtype=wide)
        scale_N1 = norm_N1.square().div_(x_ND.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x_ND, weight_D, scale_N1)
        return (x_ND * scale_N1).mul_(weight_D).to(x_ND.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_ND, weight_D, scale_N1 = ctx.saved_tensors
        unit_ND = x_ND * scale_N1
        along_ND = gradient_ND * unit_ND
        weight = None
        if ctx.needs_input_grad[1]:
            weight = along_ND.flatten(0, -2).sum(0).to(weight_D.dtype)
        if not ctx.needs_input_grad[0]:
            return None, weight, None
        share_N1 = along_ND.mul_(weight_D).mean(-1, keepdim=True)
        x = (gradient_ND * weight_D).sub_(unit_ND.mul_(share_N1)).mul_(scale_N1)
        return x.to(x_ND.dtype), weight, None


def angles(positions_BT: Tensor, half: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (B, T, 1, P/2) each, of position * base^(-i / half), ``half`` P/2: by these
    angles `rotate` turns the pairs of a head (Su et al. 2021, equation 15)."""
    if torch.compiler.is_compiling() and positions_BT.is_cpu:
        return _reckoned(positions_BT, half, base)
    return _angles(positions_BT, half, base)


def _angles(positions_BT: Tensor, half: int, base: float) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(half, device=positions_BT.device, dtype=torch.float32) / half
    frequencies = base**-exponents
    angles_BT1P = positions_BT[:, :, None, None].to(torch.float32) * frequencies
    return angles_BT1P.cos(), angles_BT1P.sin()


@torch.library.custom_op("modbench::angles", mutates_args=())
def _reckoned(positions_BT: Tensor, half: int, base: float) -> tuple[Tensor, Tensor]:
    """For torch.compile, whose kernels of a CPU would reckon them anew for each sequence and head."""
    return _angles(positions_BT, half, base)


@_reckoned.register_fake
def _(positions_BT: Tensor, half: int, base: float) -> tuple[Tensor, Tensor]:
    shape = (*positions_BT.shape, 1, half)
    return tuple(positions_BT.new_empty(shape, dtype=torch.float32) for _ in range(2))  # type: ignore[return-value]


def rotate(x_BTHP: Tensor, cos_BT1P: Tensor, sin_BT1P: Tensor) -> Tensor:
    """The pairs (i, i + P/2) of each head turned by its token's angles, whose cosines and sines are of
    half a head's width, or `widened` where no gradient is needed (Su et al. 2021, equation 34)."""
    if torch.compiler.is_compiling():
        # To put halves together by `torch.cat` would copy them once more in the backward pass.
        x_BTH2P, cos_BT11P = x_BTHP.unflatten(-1, (2, -1)), cos_BT1P[..., None, :]
        sin_BT12P = torch.stack((-sin_BT1P, sin_BT1P), dim=-2)
        return (x_BTH2P * cos_BT11P + x_BTH2P.flip(-2) * sin_BT12P).flatten(-2).to(x_BTHP.dtype)
    if not torch.is_grad_enabled():
        if cos_BT1P.shape[-1] == x_BTHP.shape[-1]:
            return _turned_at_once(x_BTHP, cos_BT1P, sin_BT1P)
        return _turned(x_BTHP, cos_BT1P, sin_BT1P)
    return _Rotate.apply(x_BTHP, cos_BT1P, sin_BT1P)  # type: ignore[no-any-return, no-untyped-call]


class _Rotate(torch.autograd.Function):
    """Linear: the gradient is turned back by the same angles, and nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, x_BTHP: Tensor, cos_BT1P: Tensor, sin_BT1P: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BT1P, sin_BT1P)
        return _turned(x_BTHP, cos_BT1P, sin_BT1P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BTHP: Tensor) -> tuple[Tensor, None, None]:
        cos_BT1P, sin_BT1P = ctx.saved_tensors
        return _turned(gradient_BTHP, cos_BT1P, -sin_BT1P), None, None


def _turned(x_BTHP: Tensor, cos_BT1P: Tensor, sin_BT1P: Tensor) -> Tensor:
    """In float32 or wider."""
    wide = torch.promote_types(x_BTHP.dtype, cos_BT1P.dtype)
    first, second = x_BTHP.to(wide).chunk(2, dim=-1)
    out = torch.empty(x_BTHP.shape, dtype=wide, device=x_BTHP.device)
    one, two = out.chunk(2, dim=-1)
    torch.mul(first, cos_BT1P, out=one).addcmul_(second, sin_BT1P, value=-1)
    torch.mul(second, cos_BT1P, out=two).addcmul_(first, sin_BT1P)
    return out.to(x_BTHP.dtype)


def widened(cos_BT1P: Tensor, sin_BT1P: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of half a head's width as `rotate` takes fewest steps with: of both halves, the
    first half's sines negative, (B, T, 1, P) each."""
    return torch.cat((cos_BT1P, cos_BT1P), dim=-1), torch.cat((-sin_BT1P, sin_BT1P), dim=-1)


def _turned_at_once(x_BTHP: Tensor, cos_BT1P: Tensor, sin_BT1P: Tensor) -> Tensor:
    """`_turned`, to the bit."""
    wide_BTHP = x_BTHP.to(torch.promote_types(x_BTHP.dtype, cos_BT1P.dtype))
    other_BTHP = wide_BTHP.roll(wide_BTHP.shape[-1] // 2, dims=-1)
    return (wide_BTHP * cos_BT1P).addcmul_(other_BTHP, sin_BT1P).to(x_BTHP.dtype)


def swiglu(up: Tensor) -> Tensor:
    """silu(gate) * value of the two halves of (..., 2F), gate first (Shazeer 2020, equation 6)."""
    if torch.compiler.is_compiling():
        gate, value = up.chunk(2, dim=-1)
        return F.silu(gate) * value
    if not torch.is_grad_enabled():
        return _swiglu(up)
    return _SwiGLU.apply(up)  # type: ignore[no-any-return, no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, up: Tensor) -> Tensor:
        ctx.save_for_backward(up)
        return _swiglu(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (up,) = ctx.saved_tensors
        return _swiglu_backward(gradient, up)


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


def as_it_is(x: Tensor) -> AbstractContextManager[Any]:
    """Inside there is no autocast: what comes is of the dtype that it is to have. The meta device knows
    none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
