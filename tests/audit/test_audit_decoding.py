"""Probe 3 where most of the decoding is right.

B sequences, T tokens, D model width.
"""

from collections.abc import Callable

import mutants
import pytest
import torch
from torch import Tensor

from modbench.audit.decoding import decode_parity
from modbench.audit.finding import Outcome, Subject
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
    """Outcome for a dense model of one layer that is ``wrong`` in some cached passes in ``dtype``."""
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


def test_a_sequence_alone_is_decoded_to_the_scored_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for length, passes in ((250, True), (256, False)):
        with monkeypatch.context() as here:
            passed, figure = decoded(alone_from(253), here, dtype=torch.float64, shape=(2, length))
        assert passed is passes, figure


@pytest.mark.parametrize(("place", "passes"), [(58, True), (48, False)])
def test_in_the_models_own_dtype_rounding_may_change_some_tokens_but_not_most(
    place: int, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(x_BTD: Tensor, context: Context) -> bool:
        assert context.cache is not None
        return x_BTD.shape[1] == 1 and context.cache.read[-1] >= place

    passed, figure = decoded(wrong, monkeypatch, dtype=torch.float32)
    assert passed is passes, figure
    assert "in torch.float32 " in figure
    passed, figure = decoded(alone_from(212), monkeypatch, dtype=torch.float64)
    assert passed is False, figure  # and there none at all


def test_decoding_that_selects_all_is_told_from_a_model_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Barred(mutants.DecodeAlways):
        """Initial weights select some tokens; these select all."""

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
    assert "with initial weights" in figure
