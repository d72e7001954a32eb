"""Pointwise multiplications that are products of vectors, and those that are not."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from modbench import FlopCounter

ONCE = 2 * 14 * 16


def grad(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def test_modes_between_the_op_and_autograd_change_nothing() -> None:
    with FlopCounter() as outer, FlopCounter() as inner:
        (grad(14, 16) @ grad(16)).sum().backward()
    assert outer.total == inner.total == 3 * ONCE
    with FlopCounter() as counter, FakeTensorMode():
        (grad(14, 16) @ grad(16)).sum().backward()
    assert counter.total == 3 * ONCE


def test_a_hook_that_multiplies_by_the_gradient_of_a_dot_costs_nothing() -> None:
    x, y = grad(16), grad(16)
    with FlopCounter() as counter:
        product = x @ y
        product.register_hook(lambda slope: (slope * torch.ones(16)).mean())
        product.backward()
    assert counter.total == 3 * 2 * 16


def test_multiplications_next_to_a_double_backward_cost_nothing() -> None:
    w, x = grad(14, 16), grad(16)
    with FlopCounter() as counter:
        (slope,) = torch.autograd.grad((w @ x).pow(2).sum(), w, create_graph=True)
        (slope * slope * w).sum().backward()
        torch.autograd.grad((w * x).sum(), w, create_graph=True)[0].square().sum().backward()
    assert counter.total == 6 * ONCE


def test_gradients_of_gradients_under_torch_func() -> None:
    def slopes(w: Tensor, x: Tensor) -> Tensor:
        return torch.func.grad(lambda w, x: (w @ x).pow(2).sum())(w, x).sum()

    with FlopCounter() as counter:
        torch.func.grad(slopes, argnums=(0, 1))(torch.randn(14, 16), torch.randn(16))
    assert counter.total == 6 * ONCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.cfloat], ids=str)
@pytest.mark.parametrize("shape", [(16,), (3, 5, 16)], ids=str)
def test_vecdot(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = grad(*shape, dtype=dtype), grad(*shape, dtype=dtype)
    for context in (torch.enable_grad, torch.inference_mode):
        with context(), FlopCounter() as counter:
            torch.linalg.vecdot(x, y)
        assert counter.total == 2 * x.numel()
    with FlopCounter() as counter:
        torch.linalg.vecdot(x, y).abs().sum().backward()
    assert counter.total == 3 * 2 * x.numel()
    with FlopCounter() as counter:
        torch.func.vmap(torch.linalg.vecdot)(x.reshape(-1, 4), y.reshape(-1, 4))
    assert counter.total == 2 * x.numel()
