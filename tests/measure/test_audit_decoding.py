"""What probe 3 tells apart where most of a decoding is right.

B sequences, T tokens, D model width.
"""

from collections.abc import Callable

import mutants
import pytest
import torch
from torch import Tensor

from modbench.measure.audit.decoding import decode_parity
from modbench.measure.audit.finding import Outcome, Subject
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=1, heads=4, mlp_width=64)


def decoded(
    wrong: Callable[[Tensor, Context], bool],
    monkeypatch: pytest.MonkeyPatch,
    *,
    dtype: torch.dtype,
    shape: tuple[int, int] = (3, 63),
) -> Outcome:
    """Of a dense model of one layer, whose result is ``wrong`` in some passes with a cache in ``dtype``.
    No later token hears of it."""
    right = Block.forward

    def forward(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
        asked = x_BTD.dtype == dtype and context.cache is not None
        there = asked and wrong(x_BTD, context)
        y_BTD = right(self, x_BTD, context)
        return y_BTD + x_BTD if there else y_BTD

    monkeypatch.setattr(Block, "forward", forward)
    subject = Subject(build_model(SHAPE, build_router("vanilla"), seed=4))
    return decode_parity(subject, subject.tokens(*shape))


def alone_from(place: int) -> Callable[[Tensor, Context], bool]:
    def wrong(x_BTD: Tensor, context: Context) -> bool:
        assert context.cache is not None
        return x_BTD.shape[:2] == (1, 1) and context.cache.read[0] >= place

    return wrong


def test_what_a_sequence_decodes_alone_is_read_to_the_length_that_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for length, passes in ((250, True), (256, False)):
        with monkeypatch.context() as here:
            passed, figure = decoded(alone_from(253), here, dtype=torch.float64, shape=(2, length))
        assert passed is passes, figure


@pytest.mark.parametrize(("place", "passes"), [(150, True), (50, False)])
def test_in_a_models_own_dtype_rounding_may_tip_some_tokens_and_not_most(
    place: int, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, figure = decoded(alone_from(place), monkeypatch, dtype=torch.float32)
    assert passed is passes, figure
    assert "in torch.float32 " in figure
    passed, figure = decoded(alone_from(212), monkeypatch, dtype=torch.float64)
    assert passed is False, figure  # and there none at all


def test_in_a_models_own_dtype_one_of_two_texts_may_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(build_model(SHAPE, build_router("vanilla"), seed=4))
    first_BT = subject.tokens(3, 63)

    def wrong(x_BTD: Tensor, context: Context) -> bool:
        tokens_BT = context.tokens_BT
        return tokens_BT is not None and bool(tokens_BT[0, 0] == first_BT[0, 0])

    passed, figure = decoded(wrong, monkeypatch, dtype=torch.float32)
    assert passed, figure


def test_a_decoding_that_lets_all_in_is_told_from_a_model_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Barred(mutants.DecodeAlways):
        """First weights let in some; these here, all."""

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            self.register_buffer("bar", torch.full((), 0.3))

        def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
            return super().likely(hints_BT - self.bar + 0.3, context)

    monkeypatch.setitem(mutants.MUTANTS, "case", Barred)
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
    model = build_model(shape, mutants.Depth(bug="case"), seed=4)
    model.layers[1].bar.fill_(-1e9)
    subject = Subject(model)
    passed, figure = decode_parity(subject, subject.tokens(3, 63))
    assert passed is False
    assert "of first weights" in figure
