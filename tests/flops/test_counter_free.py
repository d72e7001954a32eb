"""Which ops cost nothing: what PyTorch writes its decompositions in."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench import FlopCounter


@pytest.mark.parametrize(
    "last",
    [
        lambda y: y.pow(3),
        lambda y: y.relu(),
        lambda y: F.layer_norm(y, (5,)),
        lambda y: y.log_softmax(1),
    ],
    ids=["pow", "relu", "layer_norm", "log_softmax"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_over_a_backward_pass(last: Callable[[Tensor], Tensor]) -> None:
    """What PyTorch takes apart into its ``prims`` there costs nothing: the matmul and its gradient, each
    three times, once and for the tangent of either operand."""
    x, w = torch.randn(3, 4), torch.randn(4, 5)

    def loss(x: Tensor) -> Tensor:
        return last(x @ w).square().sum()

    with FlopCounter() as counter:
        torch.func.jvp(torch.func.grad(loss), (x,), (torch.ones_like(x),))
    assert counter.total == 3 * 2 * (2 * 3 * 4 * 5)
