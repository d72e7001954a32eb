"""Which ops cost nothing: those that PyTorch writes its decompositions in, and no product."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench import FlopCounter
from modbench.counting.formulas import FORMULAS
from modbench.counting.zero_flop_ops import is_free


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


def test_no_product_is_taken_for_free() -> None:
    """Not even one in a list whose others are pointwise, as ``_foreach_mm``."""
    product = re.compile(r"aten::\w*(mm|mv|matmul|linear|dot)_?")
    names = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    names = {name for name in names if product.fullmatch(name)}
    assert len(names) > 10
    for name in names - FORMULAS.keys():
        packet = getattr(torch.ops.aten, name.removeprefix("aten::"))
        assert not any(is_free(getattr(packet, kind)) for kind in packet.overloads()), name


@pytest.mark.skipif(not hasattr(torch, "_foreach_mm"), reason="this PyTorch has no _foreach_mm")
def test_a_list_of_products() -> None:
    lefts, rights = (
        [torch.randn(*shape, requires_grad=True) for shape in shapes]
        for shapes in (((3, 4), (5, 6)), ((4, 7), (6, 2)))
    )
    once = 2 * (3 * 4 * 7 + 5 * 6 * 2)
    with FlopCounter() as counter:
        products = torch._foreach_mm(lefts, rights)
    assert counter.total == once
    with counter:
        sum(product.sum() for product in products).backward()
    assert counter.total == 3 * once


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.copysign_(-x),
        lambda x: x.heaviside_(x),
        lambda x: x.long().gcd_(x.long()),
        lambda x: x.long().lcm_(x.long()),
        lambda x: x.long().__irshift__(1),
        lambda x: torch.fft.fftfreq(5),
        lambda x: torch.fft.rfftfreq(5),
    ],
    ids=["copysign_", "heaviside_", "gcd_", "lcm_", ">>=", "fftfreq", "rfftfreq"],
)
def test_what_writes_into_an_argument_costs_nothing_either(run: Callable[[Tensor], object]) -> None:
    """PyTorch doesn't tag these as pointwise, as it does what they stand for."""
    with FlopCounter() as counter:
        run(torch.ones(3))
    assert counter.total == 0
