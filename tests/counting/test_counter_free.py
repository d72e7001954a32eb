"""Which ops cost nothing: those that PyTorch writes its decompositions in, and no product."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modbench import FlopCounter
from modbench.counting.formulas import FORMULAS
from modbench.counting.zero_flop_ops import is_free


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
        lambda x: x.long().gcd_(x.long()),
        lambda x: x.long().__irshift__(1),
        lambda x: torch.fft.fftfreq(5),
    ],
    ids=["copysign_", "gcd_", ">>=", "fftfreq"],
)
def test_what_writes_into_an_argument_costs_nothing_either(run: Callable[[Tensor], object]) -> None:
    """PyTorch doesn't tag these as pointwise, as it does what they stand for."""
    with FlopCounter() as counter:
        run(torch.ones(3))
    assert counter.total == 0
