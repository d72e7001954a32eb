"""Probe 9 counts the program that torch.compile traces.

B sequences, T tokens, D model width.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from modbench.measure.audit.compiled_step import miscounted_when_compiled
from modbench.measure.audit.finding import Subject
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def miscounted(name: str) -> str:
    subject = Subject(build_model(SHAPE, build_router(name), seed=4))
    return miscounted_when_compiled(subject, subject.tokens(3, 33), "on")


@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
@pytest.mark.parametrize("name", ["vanilla", "mod", "token_choice"])
def test_the_traced_program_spends_what_the_ledger_says(name: str) -> None:
    assert miscounted(name) == ""


def test_work_done_only_under_torch_compile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Block.forward

    def forward(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = right(self, x_BTD, context)
        if torch.compiler.is_compiling():
            return y_BTD + 0 * self.feed_forward(x_BTD, context)
        return y_BTD

    monkeypatch.setattr(Block, "forward", forward)
    assert miscounted("vanilla") == (
        f"{-2 * 2 * 3 * 33 * 32 * 3 * 64:+d} in the forward pass of the compiled training step, which "
        "torch.compile traces"
    )


def test_steps_that_are_not_compiled_are_not_traced() -> None:
    subject = Subject(build_model(SHAPE, build_router("vanilla"), seed=4))
    assert miscounted_when_compiled(subject, subject.tokens(3, 33)) == ""
    assert "exact" not in vars(subject)
