"""Probe 10 names where state hides that no checkpoint keeps: in files, defaults, slots and closures.

B sequences, T tokens.
"""

import itertools
from collections import deque
from typing import Any

import mutants
import numpy as np
import pytest
import torch
from mutants import Depth, Right
from torch import Tensor

from modbench.measure.audit.finding import Subject, unmoved
from modbench.measure.audit.state import moved_by_scoring, state
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


class Slots:
    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = 0


class Both(Slots):
    """With a ``__dict__``, too."""


SLOTS, BOTH, ARRAY, LAST, COUNT = Slots(), Both(), np.zeros(2), deque([0], maxlen=3), itertools.count()
BITS = np.random.default_rng(0)


def _counted() -> Any:
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    return step


def by_default(steps: list[int] = [0]) -> None:  # noqa: B006
    steps[0] += 1


def by_keyword(*, steps: list[int] = [0]) -> None:  # noqa: B006
    steps[0] += 1


def by_attribute() -> None:
    by_attribute.steps = getattr(by_attribute, "steps", 0) + 1  # type: ignore[attr-defined]


by_closure = _counted()


class Counts(Right):
    """Of each layer, how often it trained."""

    def step(self) -> None:
        raise NotImplementedError

    def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
        if self.training and not scores_BT.is_meta and not context.trace.repeated:
            self.step()
        return super().highest(scores_BT, context)


def in_a_method(self: Counts, steps: list[int] = [0]) -> None:  # noqa: B006
    steps[0] += 1


def in_slots(_: Counts) -> None:
    SLOTS.steps += 1


def in_slots_of_a_base(_: Counts) -> None:
    BOTH.steps += 1


def in_an_array(_: Counts) -> None:
    ARRAY[1] += 1


def in_a_deque(_: Counts) -> None:
    LAST.append(LAST[-1] + 1)


def in_a_counter(_: Counts) -> None:
    next(COUNT)


def in_what_is_drawn(_: Counts) -> None:
    BITS.random()


HERE = "global test_audit_state"


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (in_a_method, "a default argument of class Case.step"),
        (lambda _: by_default(), f"a default argument of {HERE}.by_default"),
        (lambda _: by_keyword(), f"a default argument of {HERE}.by_keyword"),
        (lambda _: by_attribute(), f"an attribute of {HERE}.by_attribute"),
        (lambda _: by_closure(), f"the closure of {HERE}.by_closure"),
        (in_slots, f"{HERE}.SLOTS"),
        (in_slots_of_a_base, f"{HERE}.BOTH"),
        (in_an_array, f"{HERE}.ARRAY"),
        (in_a_deque, f"{HERE}.LAST"),
        (in_a_counter, f"{HERE}.COUNT"),
        (in_what_is_drawn, f"{HERE}.BITS"),
    ],
    ids=lambda value: value.split(".")[-1] if isinstance(value, str) else "",
)
def test_state_is_named_where_it_hides(step: Any, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Case(Counts):
        pass

    Case.step = step
    monkeypatch.setitem(mutants.MUTANTS, "case", Case)
    subject = Subject(build_model(SHAPE, Depth(bug="case"), seed=4))
    passed, figure = state(subject, subject.tokens(3, 63))
    assert (passed, figure) == (False, f"training moves {named}, which is not in state_dict")


class Unfilled(Right):
    """One buffer is made empty, and ``initialise`` forgets it; another holds the greatest number."""

    dtype = torch.float32

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        self.register_buffer("longest", torch.tensor([torch.iinfo(torch.int64).max]))
        self.register_buffer("forgotten", torch.empty(1, model.width, dtype=self.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_what_nobody_fills_is_named(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unfilled, "dtype", dtype)
    monkeypatch.setitem(mutants.MUTANTS, "unfilled", Unfilled)
    subject = Subject(build_model(SHAPE, Depth(bug="unfilled")))
    passed, figure = state(subject, subject.tokens(3, 63))
    assert not passed
    assert figure.startswith("layers.1.forgotten is never filled")


class MadeLate(Right):
    """Makes a buffer when it is first called."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(3))
        return super().forward(x_BTD, context)


def test_a_buffer_made_on_first_use_is_moved_by_no_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't be loaded, which probe 10 tells; nobody's text is in it."""
    monkeypatch.setitem(mutants.MUTANTS, "late", MadeLate)
    subject = Subject(build_model(SHAPE, Depth(bug="late")))
    assert moved_by_scoring(subject) == ""
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layers\.1\.late"):
        state(subject, subject.tokens(3, 63))


class Unset(Right):
    """Holds what isn't known yet as no number."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.unset = float("nan")
        self.register_buffer("saved", torch.full((2,), float("nan")))
        self.register_buffer("scratch", torch.full((2,), float("nan")), persistent=False)


def test_what_is_no_number_and_stays_so_has_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mutants.MUTANTS, "unset", Unset)
    subject = Subject(build_model(SHAPE, Depth(bug="unset"), seed=4))
    passed, figure = state(subject, subject.tokens(3, 63))
    assert (passed, figure.partition(" ")[2]) == (True, "tensors saved, loaded and resumed to the bit")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([1.0, torch.nan], [1.0, torch.nan], True),
        ([1.0, torch.nan], [1.0, 0.0], False),
        ([torch.inf], [torch.finfo().max], False),
        ([1], [1], True),
        ([True], [False], False),
        ([1.0], [1.0, 1.0], False),
    ],
    ids=str,
)
def test_what_has_moved_is_told_from_what_is_no_number(one: Any, other: Any, equal: bool) -> None:
    assert unmoved(torch.tensor(one), torch.tensor(other)) is equal
