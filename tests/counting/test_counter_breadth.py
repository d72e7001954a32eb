"""Code that isn't ours: each case against a number worked out by hand."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops import map as map_over
from torch._higher_order_ops.scan import scan

from modbench import FlopCounter
from modbench.errors import UserError


def counted(run: Callable[[], object]) -> FlopCounter:
    with FlopCounter() as counter:
        run()
    return counter


def grad(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def test_a_branch_taken_counts_its_backward_pass() -> None:
    x, w = grad(4, 4), grad(4, 4)

    def run() -> None:
        (y,) = torch.cond(torch.tensor(True), lambda x, w: (x * w,), lambda x, w: (x @ w,), (x, w))
        (z,) = torch.cond(torch.tensor(False), lambda x, w: (x * w,), lambda x, w: (x @ w,), (y, w))
        z.sum().backward()

    counter = counted(run)
    # The branch runs as what it is, and its backward pass is its own.
    assert counter.ledger.entries[-1, "other", "forward"].full == 128
    assert counter.ledger.entries[-1, "other", "backward"].full == 2 * 128


def test_a_scan_and_a_map_count_each_step() -> None:
    steps = torch.randn(3, 4, 4)
    scanned = counted(lambda: scan(lambda carry, y: (carry @ y, carry * 1), torch.eye(4), steps))
    assert scanned.total == 3 * 2 * 64
    assert counted(lambda: map_over(lambda y: y @ y, steps)).total == 3 * 2 * 64


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_gives_what_it_gives_uncounted(reverse: bool) -> None:
    def run() -> object:
        start, steps = (
            (torch.eye(4), torch.ones(())),
            {"y": torch.randn(3, 4, 4), "z": torch.arange(3.0)},
        )
        return scan(
            lambda carry, each: ((carry[0] @ each["y"], carry[1] * 2), (carry[0] + 1, each["z"] - 1)),
            start,
            steps,
            reverse=reverse,
        )

    found = []
    for context in (nullcontext(), FlopCounter()):
        torch.manual_seed(0)
        with context:
            found.append(run())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_custom_op_is_counted_once_it_is_registered() -> None:
    @torch.library.custom_op("modbench_test::double_matmul", mutates_args=())
    def double_matmul(x: Tensor, y: Tensor) -> Tensor:
        return x @ y * 2

    x, y = torch.randn(3, 5), torch.randn(5, 7)
    with pytest.raises(UserError, match="modbench_test::double_matmul"):
        counted(lambda: double_matmul(x, y))
    from modbench import register_flop_formula

    register_flop_formula(
        "modbench_test::double_matmul", lambda arguments, result: 2 * arguments["x"].numel() * 7
    )
    assert counted(lambda: double_matmul(x, y)).total == 210


def test_a_counter_goes_on_when_it_is_entered_again_but_not_within_itself() -> None:
    x, counter = torch.randn(4, 4), FlopCounter()
    for _ in "ab":
        with counter:
            x @ x
    assert counter.total == 256
    with counter:
        with pytest.raises(UserError, match="is counting already"):
            counter.__enter__()
        x @ x
    assert counter.total == 384
