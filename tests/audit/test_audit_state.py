"""Probe 10 tells state outside a checkpoint from tables and constants.

B sequences, T tokens.
"""

from typing import Any

import mutants
import pytest
import torch
from mutants import Depth, Right
from torch import Tensor

from modbench.audit.finding import Subject, unmoved
from modbench.audit.state import changed_by_scoring, state
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


class Unfilled(Right):
    """One buffer is never filled."""

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        self.register_buffer("forgotten", torch.empty(1, model.width))


def test_an_uninitialised_buffer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mutants.MUTANTS, "unfilled", Unfilled)
    subject = Subject(build_model(SHAPE, Depth(bug="unfilled")))
    passed, figure = state(subject, subject.tokens(3, 63))
    assert not passed
    assert figure.startswith("layers.1.forgotten is never filled")


class MadeLate(Right):
    """Registers a buffer in its first forward pass."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(3))
        return super().forward(x_BTD, context)


def test_a_buffer_made_on_first_use_is_not_changed_by_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be loaded, though, which probe 10 finds."""
    monkeypatch.setitem(mutants.MUTANTS, "late", MadeLate)
    subject = Subject(build_model(SHAPE, Depth(bug="late")))
    assert changed_by_scoring(subject) == ""
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layers\.1\.late"):
        state(subject, subject.tokens(3, 63))


class Unset(Right):
    """Holds NaN where a value is not known yet."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.unset = float("nan")
        self.register_buffer("saved", torch.full((2,), float("nan")))
        self.register_buffer("scratch", torch.full((2,), float("nan")), persistent=False)


def test_nan_that_stays_nan_has_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mutants.MUTANTS, "unset", Unset)
    subject = Subject(build_model(SHAPE, Depth(bug="unset"), seed=4))
    passed, figure = state(subject, subject.tokens(3, 63))
    assert passed is True
    assert figure.endswith(" tensors saved, loaded and resumed bit for bit")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([1.0, torch.nan], [1.0, torch.nan], True),
        ([1.0, torch.nan], [1.0, 0.0], False),
        ([torch.inf], [torch.finfo().max], False),
        ([1.0], [1.0, 1.0], False),
    ],
    ids=str,
)
def test_nan_equals_nan_alone(one: Any, other: Any, equal: bool) -> None:
    assert unmoved(torch.tensor(one), torch.tensor(other)) is equal
