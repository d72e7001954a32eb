"""Cases for FLOP counters: gradients that hooks, backward functions and transformations compute, and
products of vectors, whose gradients PyTorch writes as pointwise multiplications.

N rows, M columns.
"""

from typing import Any

import torch
import torch.nn.functional as F
from counter_case import Case, Work, call, cases, mm, square
from torch import Tensor


def _grad(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def _loss(x: Tensor, p: Tensor) -> None:
    """Differentiate a loss by ``p`` alone."""
    with torch.enable_grad():
        (x.detach() @ p).square().sum().backward()


def _loss_in_a_hook() -> Work:
    x, w, p = _grad(6, 16), _grad(16, 64), _grad(16, 7)

    def run() -> None:
        y = x @ w
        y.register_hook(lambda slope: _loss(x, p))
        y.sum().backward()

    return Work(run=run)


class LossInBackward(torch.autograd.Function):
    """Pass ``x`` on; the backward function trains ``p``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor) -> Tensor:
        ctx.kept, ctx.p = x, p
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        _loss(ctx.kept, ctx.p)
        return slopes[0], None


def _loss_in_a_backward_function() -> Work:
    x, w, p = _grad(6, 16), _grad(16, 64), _grad(16, 7)
    return Work(run=lambda: (LossInBackward.apply(x, p.detach().requires_grad_()) @ w).sum().backward())


class RunAgain(torch.autograd.Function):
    """x @ w, run again in the backward function and differentiated there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x, w = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            y = x @ w
        return torch.autograd.grad(y, (x, w), slopes)


class RunAgainByVjp(RunAgain):
    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        _, gradients = torch.func.vjp(torch.mm, *ctx.saved_tensors)
        return gradients(slopes[0])


def _again(function: type[torch.autograd.Function]) -> Work:
    x, w = _grad(6, 16), _grad(16, 64)
    return Work(run=lambda: function.apply(x, w).sum().backward())


def _product_in_a_hook() -> Work:
    w, x = _grad(14, 16), torch.randn(16)

    def run() -> None:
        y = w @ x
        y.grad_fn.register_hook(lambda slopes, _: (slopes[0] * torch.ones(14, 16), None))
        y.sum().backward()

    return Work(run=run)


def _by_each_row() -> Work:
    """The gradient of |w @ x|^2 by w, for each row x."""
    w, x = torch.randn(14, 16), torch.randn(5, 16)
    gradient = torch.func.grad(lambda w, x: (w @ x).square().sum())
    return Work(run=lambda: torch.func.vmap(gradient, in_dims=(None, 0))(w, x))


def _dots_of_rows() -> Work:
    x, y = torch.randn(5, 16), torch.randn(5, 16)
    gradient = torch.func.grad(lambda x, y: x.dot(y), argnums=(0, 1))
    return Work(run=lambda: torch.func.vmap(gradient)(x, y))


def _jacobian() -> Work:
    w, x = torch.randn(14, 16), torch.randn(16)
    return Work(run=lambda: torch.func.jacrev(lambda w: w @ x)(w))


def _double_backward() -> Work:
    w, x = _grad(14, 16), _grad(16)

    def run() -> None:
        (slope,) = torch.autograd.grad((w @ x).pow(2).sum(), w, create_graph=True)
        slope.sum().backward()

    return Work(run=run)


def _vecdot() -> Work:
    x, y = _grad(10, 16), _grad(10, 16)
    return Work(run=lambda: torch.linalg.vecdot(x, y).sum().backward())


def _affine_grid() -> Work:
    theta = _grad(3, 2, 3)
    return Work(run=lambda: F.affine_grid(theta, (3, 1, 8, 9), align_corners=False).sum().backward())


def _attention_backward() -> Work:
    q, k, v, slope = (torch.randn(2, 4, 20, 8) for _ in "qkvs")
    aten = torch.ops.aten
    out, log = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    return Work(run=lambda: backward(slope, q, k, v, out, log, 0.0, True))


UP, MV = mm(6, 16, 64), mm(14, 16, 1)
EXTRA = 2 * mm(6, 16, 7)
GRID = mm(3 * 8 * 9, 3, 2)

GRADIENT_CASES: list[Case] = [
    *cases(
        "hooks, backward functions, transformations",
        ("loss in a tensor's hook", 3 * UP + EXTRA, _loss_in_a_hook),
        ("loss in a backward function", 3 * UP + EXTRA, _loss_in_a_backward_function),
        ("forward pass again by autograd.grad", 3 * UP, lambda: _again(RunAgain), UP),
        ("forward pass again by torch.func.vjp", 3 * UP, lambda: _again(RunAgainByVjp), UP),
        ("pointwise product in the hook of an mv", 2 * MV, _product_in_a_hook),
        ("vmap of the gradient of an mv", 5 * 2 * MV, _by_each_row),
        ("vmap of the gradients of a dot", 5 * 3 * mm(1, 16, 1), _dots_of_rows),
        # One backward pass for each of 14 outputs.
        ("jacrev of an mv", 15 * MV, _jacobian),
        # w @ x; its dW, an outer product; that product's two operands, and the first matmul's two.
        ("double backward of an mv", 6 * MV, _double_backward),
        ("vecdot, training", 3 * mm(10, 16, 1), _vecdot),
        ("affine grid, training", 2 * GRID, _affine_grid),
        (
            "SDPA's backward op alone",
            2 * square(2, 4, 20, 20, 8),
            _attention_backward,
            square(2, 4, 20, 20, 8) // 2,
        ),
    ),
    *cases(
        "basic ops",
        ("vecdot", mm(10, 16, 1), call(lambda x, y: torch.linalg.vecdot(x, y), (10, 16), (10, 16))),
        (
            "affine grid",
            GRID,
            call(lambda theta: F.affine_grid(theta, (3, 1, 8, 9), align_corners=False), (3, 2, 3)),
        ),
    ),
]
