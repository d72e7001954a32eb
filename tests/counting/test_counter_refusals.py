"""A program that swallows the counter's error does not get a count without the op."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import torch._higher_order_ops
from torch import Tensor

from modbench import FlopCounter
from modbench.counting.formulas import FORMULAS
from modbench.errors import UserError

UNKNOWN = "FLOPs of op 'aten::_fft_r2c' are not known"


@pytest.fixture(autouse=True)
def _unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FORMULAS, "aten::_fft_r2c", raising=False)


def refused() -> None:
    torch.fft.rfft(torch.randn(8))


def swallowed(run: Callable[[], None]) -> None:
    with suppress(Exception):
        run()


def sparse() -> None:
    """Refused by the formula, after the op has run."""
    matrix = torch.eye(3).to_sparse()
    matrix @ matrix


def higher_order() -> None:
    torch.ops.higher_order.strict_mode(lambda x: (x,), (torch.ones(3),))


def in_a_hook() -> None:
    def hook(slope: Tensor) -> None:
        swallowed(refused)

    x = torch.ones(3, requires_grad=True)
    x.register_hook(hook)
    x.sum().backward()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (refused, UNKNOWN),
        (sparse, "two sparse matrices"),
        (higher_order, "higher-order op 'strict_mode'"),
        (in_a_hook, UNKNOWN),
    ],
)
def test_a_swallowed_refusal_is_raised_at_the_end(run: Callable[[], None], words: str) -> None:
    counter = FlopCounter()
    with pytest.raises(UserError, match=words), counter:
        swallowed(run)
    with counter:
        pass  # once


def test_an_error_of_the_formula_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMULAS, "aten::_fft_r2c", lambda arguments, result: arguments["size"])
    with pytest.raises(KeyError, match="size"), FlopCounter():
        swallowed(refused)


def test_the_programs_own_error_names_the_swallowed_refusal() -> None:
    def program() -> None:
        swallowed(refused)
        raise KeyError

    with pytest.raises(KeyError) as raised, FlopCounter():
        program()
    assert UNKNOWN in raised.value.__notes__[0]


def test_a_refusal_inside_a_counter_is_one_of_the_counter_around_it() -> None:
    """It lacks the FLOPs of the op as well."""
    with pytest.raises(UserError, match=UNKNOWN), FlopCounter(), suppress(UserError), FlopCounter():
        refused()


def test_a_user_error_of_the_program_is_the_programs() -> None:
    def branch(x: Tensor) -> Tensor:
        raise UserError("mine")

    with FlopCounter() as counter, suppress(UserError):
        torch.ops.higher_order.cond(torch.tensor(True), branch, branch, (torch.ones(3),))
    assert counter.total == 0
