"""What a backward function of a `torch.autograd.Function` runs again is recomputation, and nothing else
is. Each matmul is 5 rows by 8 columns by 8."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbench import FlopCounter

ONCE = 2 * 5 * 8 * 8
PROBE = torch.randn(8, 8, requires_grad=True)
LAYER = nn.Linear(8, 8, bias=False)


def grad(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def units(run: Callable[[], object]) -> tuple[float, float]:
    """Matmuls needed and executed."""
    with FlopCounter() as counter:
        run()
    return counter.total / ONCE, counter.executed / ONCE


def again(ctx: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, w = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
    with torch.enable_grad():
        return x, w, x @ w


def by_hand(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return slope @ w.T, x.T @ slope


def copied(ctx: Any, slope: Tensor) -> Any:
    x, w, y = again(ctx)
    y.backward(slope.contiguous())
    return x.grad, w.grad


def cast(ctx: Any, slope: Tensor) -> Any:
    x, w, y = again(ctx)
    return torch.autograd.grad(y, (x, w), slope.double().float())


def renamed(ctx: Any, slope: Tensor) -> Any:
    slope = slope * 1
    x, w, y = again(ctx)
    return torch.autograd.grad(y, (x, w), slope)


def as_a_loss(ctx: Any, slope: Tensor) -> Any:
    x, w, y = again(ctx)
    with torch.enable_grad():
        loss = (y * slope).sum()
    return torch.autograd.grad(loss, (x, w))


def of_copies(ctx: Any, slope: Tensor) -> Any:
    x, w = (tensor.double().float().requires_grad_() for tensor in ctx.saved_tensors)
    with torch.enable_grad():
        y = x @ w
    return torch.autograd.grad(y, (x, w), slope)


def probe_of_the_slope(ctx: Any, slope: Tensor) -> Any:
    with torch.enable_grad():
        (slope @ PROBE).square().sum().backward()
    return by_hand(ctx, slope)


def probe_of_the_input(ctx: Any, slope: Tensor) -> Any:
    with torch.enable_grad():
        (ctx.saved_tensors[0].detach() @ PROBE).backward(slope)
    return by_hand(ctx, slope)


def probe_module(ctx: Any, slope: Tensor) -> Any:
    with torch.enable_grad():
        LAYER(ctx.saved_tensors[0].detach()).backward(slope)
    return by_hand(ctx, slope)


def new_probe(ctx: Any, slope: Tensor) -> Any:
    probe = torch.randn(8, 8, requires_grad=True)
    with torch.enable_grad():
        (ctx.saved_tensors[0].detach() @ probe.T).square().sum().backward()
    return by_hand(ctx, slope)


def probe_next_to_it(ctx: Any, slope: Tensor) -> Any:
    with torch.enable_grad():
        (ctx.saved_tensors[0].detach() @ PROBE).backward(slope)
    return copied(ctx, slope)


def product(backward: Callable[[Any, Tensor], Any]) -> Callable[..., Tensor]:
    """x @ w with that backward function, by a name taken before any counter began."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> Any:
            return backward(ctx, *slopes)

    return Product.apply


@pytest.mark.parametrize("backward", [copied, cast, renamed, as_a_loss, of_copies])
def test_recompute_is_known_by_what_it_runs_again(backward: Callable[..., Any]) -> None:
    function = product(backward)
    x, w = grad(5, 8), grad(8, 8)
    assert units(lambda: function(x, w).sum().backward()) == (3, 4)
    y = function(x, w).sum()
    with FlopCounter() as counter:
        y.backward(retain_graph=True)
        y.backward()
    needs_a_slope = backward is not as_a_loss  # to be known without its forward pass
    assert counter.total == (4 if needs_a_slope else 6) * ONCE


def test_each_run_of_a_backward_function_runs_its_forward_pass_again() -> None:
    function, x, w = product(copied), grad(5, 8), grad(8, 8)

    def run() -> None:
        y = function(x, w).sum()
        y.backward(retain_graph=True)
        y.backward()

    assert units(run) == (5, 7)


@pytest.mark.parametrize("backward", [probe_of_the_slope, probe_of_the_input, probe_module, new_probe])
def test_a_probe_trained_in_a_backward_function_is_work(backward: Callable[..., Any]) -> None:
    """Its forward pass, of the same shape as the function's own, and its gradient by the weight."""
    function, x, w = product(backward), grad(5, 8), grad(8, 8)
    assert units(lambda: function(x, w).sum().backward()) == (3 + 2, 5)


def test_a_probe_next_to_recompute_is_told_apart() -> None:
    function, x, w = product(probe_next_to_it), grad(5, 8), grad(8, 8)
    assert units(lambda: function(x, w).sum().backward()) == (3 + 2, 6)


class Reversible(torch.autograd.Function):
    """y1 = x1 + f(x2), y2 = x2 + g(y1); the backward function computes x2 from the outputs."""

    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor, f: nn.Module, g: nn.Module) -> Any:
        y1 = x1 + f(x2)
        y2 = x2 + g(y1)
        ctx.f, ctx.g = f, g
        ctx.save_for_backward(y1, y2)
        return y1, y2

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        y1, y2 = (tensor.detach() for tensor in ctx.saved_tensors)
        slope1, slope2 = (slope.clone() for slope in slopes)
        with torch.enable_grad():
            of_y1 = ctx.g(y1.requires_grad_())
        of_y1.backward(slope2)
        slope1 = slope1 + y1.grad
        x2 = (y2 - of_y1).detach().requires_grad_()
        with torch.enable_grad():
            of_x2 = ctx.f(x2)
        of_x2.backward(slope1)
        return slope1, slope2 + x2.grad, None, None


class Block(torch.autograd.Function):
    """x + f(x); the backward function takes its input from a list that the later block has filled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: nn.Module, inputs: list[Tensor]) -> Tensor:
        ctx.f, ctx.inputs = f, inputs
        y = x + f(x)
        inputs[:] = [y.clone()]
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x = (ctx.inputs[0] - 1).requires_grad_()  # stands for the inverse
        with torch.enable_grad():
            of_x = ctx.f(x)
        of_x.backward(slopes[0].contiguous())
        ctx.inputs[:] = [x.detach()]
        return slopes[0] + x.grad, None, None


def test_blocks_that_hand_their_inputs_on_run_each_part_twice() -> None:
    x, parts, inputs = grad(5, 8), [nn.Linear(8, 8) for _ in range(3)], []

    def run() -> None:
        y = x
        for part in parts:
            y = Block.apply(y, part, inputs)
        y.square().sum().backward()

    assert units(run) == (9, 12)


class Fused(nn.Module):
    """Two matmuls and a backward pass by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
            hidden = x @ up
            ctx.save_for_backward(x, up, down, hidden)
            return hidden @ down

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> Any:
            x, up, down, hidden = ctx.saved_tensors
            slope = slopes[0] @ down.T
            return slope @ up.T, x.T @ slope, hidden.T @ slopes[0]

    def forward(self, x: Tensor) -> Tensor:
        return Fused.Function.apply(x, self.up, self.down)


@pytest.mark.parametrize(("part", "matmuls"), [(lambda: nn.Linear(8, 8), 2), (Fused, 4)])
def test_a_reversible_block_runs_each_part_twice(part: Callable[[], nn.Module], matmuls: int) -> None:
    x1, x2, f, g = grad(5, 8), grad(5, 8), part(), part()

    def run() -> None:
        y1, y2 = Reversible.apply(x1, x2, f, g)
        (y1 * y2).sum().backward()

    assert units(run) == (3 * matmuls, 4 * matmuls)


@pytest.mark.parametrize("made", [lambda: 0.02 * torch.randn(8, 8), lambda: torch.eye(8) * 1.0])
def test_a_probe_with_computed_weights_keeps_its_forward_pass(made: Callable[[], Tensor]) -> None:
    class Probing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            with torch.enable_grad():
                probe = made().requires_grad_()
                (torch.randn(8, 8) @ probe).pow(2).sum().backward(inputs=[probe])
            return slope @ w.T, x.T @ slope

    x, w = (torch.randn(8, 8, requires_grad=True) for _ in range(2))
    with FlopCounter() as counter:
        Probing.apply(x, w).sum().backward()
    assert counter.total == 5 * 2 * 8**3
