"""Recomputation in the middle of a backward pass is counted once and for the right part."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modbench import FlopCounter
from modbench.ledger import Flops, component

ONCE = 2 * 5 * 8 * 8


def counted(run: Callable[[], object]) -> FlopCounter:
    with FlopCounter() as counter:
        run()
    return counter


def grad(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_recompute_is_executed_and_no_more(reentrant: bool, device: str) -> None:
    first, second = (nn.Linear(8, 8, bias=False, device=device) for _ in range(2))
    x = torch.randn(5, 8, device=device, requires_grad=True)

    def region(x: Tensor) -> Tensor:
        with component("first", 0):
            x = first(x)
        with component("second", 1):
            return second(torch.relu(x))

    counter = counted(lambda: checkpoint(region, x, use_reentrant=reentrant).sum().backward())
    expected = {
        (0, "first", "forward"): Flops(ONCE, ONCE),
        (1, "second", "forward"): Flops(ONCE, ONCE),
        (0, "first", "backward"): Flops(2 * ONCE, 2 * ONCE),
        (1, "second", "backward"): Flops(2 * ONCE, 2 * ONCE),
        (0, "first", "recompute"): Flops(0, 0, ONCE),
    }
    if reentrant:  # the other kind stops at the last tensor it needs, before the last matmul
        expected[1, "second", "recompute"] = Flops(0, 0, ONCE)
    assert counter.ledger.entries == expected
    assert counter.total == counter.total_model == 6 * ONCE
    assert counter.executed == (8 if reentrant else 7) * ONCE
    assert sum(counter.by_op.values()) == counter.total
    assert counter.under("executed") == counter.executed


@pytest.mark.parametrize("reentrant", [True, False])
def test_without_labels_inside_recompute_belongs_to_the_call(reentrant: bool) -> None:
    layer, x = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8)), grad(5, 8)

    def run() -> None:
        with component("mlp", 2):
            y = checkpoint(layer, x, use_reentrant=reentrant)
        y.sum().backward()

    assert counted(run).ledger.entries == {
        (2, "mlp", "forward"): Flops(2 * ONCE, 2 * ONCE),
        (2, "mlp", "backward"): Flops(4 * ONCE, 4 * ONCE),
        (2, "mlp", "recompute"): Flops(0, 0, (2 if reentrant else 1) * ONCE),
    }


class Product(torch.autograd.Function):
    """x @ w, with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return gradients[0] @ w.T, x.T @ gradients[0]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_function_of_ones_own_is_run_again_without_recording(reentrant: bool) -> None:
    x, w = grad(5, 8), grad(8, 8)
    counter = counted(lambda: checkpoint(Product.apply, x, w, use_reentrant=reentrant).sum().backward())
    assert counter.total == 3 * ONCE
    assert counter.executed - counter.total == ONCE
    plain = counted(lambda: Product.apply(x, w).sum().backward())
    assert plain.total == plain.executed == 3 * ONCE


@pytest.mark.parametrize("create_graph", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_gradient_inside_a_checkpointed_function_is_needed_once(
    reentrant: bool, create_graph: bool
) -> None:
    x, w = grad(5, 8), grad(8, 8)

    def slope_times_x(x: Tensor) -> Tensor:
        with torch.enable_grad():  # which a reentrant checkpoint switches off
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad((leaf @ w).pow(2).sum(), leaf, create_graph=create_graph)
        return (x * slope) @ w

    plain = counted(lambda: slope_times_x(x).sum().backward())
    # Of the slope the product and its gradient by x; then x @ w with two gradients. With a graph of the
    # slope, its gradients by the outer gradient and w, and those of the first product by x and w.
    assert plain.total == plain.executed == (2 + 3 + 4 * create_graph) * ONCE
    counter = counted(lambda: checkpoint(slope_times_x, x, use_reentrant=reentrant).sum().backward())
    assert counter.total == plain.total
    assert counter.executed - counter.total == 3 * ONCE


class Twice(torch.autograd.Function):
    """x @ w; the backward function runs it again, and differentiates a loss of its own twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x, w = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            y, loss = x @ w, (x @ w).square().sum()
            (slope,) = torch.autograd.grad(loss, w, create_graph=True)
        torch.autograd.grad(slope, w, torch.ones(8, 8))
        return torch.autograd.grad(y, (x, w), slopes)


def test_a_loss_next_to_a_recompute_is_told_apart() -> None:
    x, w = grad(5, 8), grad(8, 8)
    counter = counted(lambda: Twice.apply(x, w).sum().backward())
    # The loss: x @ w and its gradient by w, and both of them once more for the second.
    assert (counter.total, counter.executed) == ((3 + 4) * ONCE, (3 + 4 + 1) * ONCE)


def test_recompute_under_a_gradient_of_a_gradient() -> None:
    weight, x = grad(8, 8), grad(5, 8)

    def run() -> None:
        y = checkpoint(lambda x: (x @ weight).pow(2) @ weight, x, use_reentrant=False)
        torch.autograd.grad(y.sum(), x, create_graph=True)

    counter = counted(run)
    assert counter.total == 4 * ONCE  # by x alone
    assert counter.executed - counter.total == ONCE


def test_a_backward_pass_inside_a_reentrant_checkpoint_inside_another() -> None:
    x, w = grad(5, 8), grad(8, 8)

    def inner(x: Tensor) -> Tensor:
        return torch.relu(x @ w)

    def outer(x: Tensor) -> Tensor:
        return checkpoint(inner, x, use_reentrant=True)

    counter = counted(lambda: checkpoint(outer, x, use_reentrant=True).sum().backward())
    assert (counter.total, counter.executed) == (3 * ONCE, 5 * ONCE)
