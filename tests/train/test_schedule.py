"""Learning rate over a run."""

import math
from dataclasses import replace

import pytest

from modbench.errors import UserError
from modbench.train.schedule import Schedule


def test_learning_rate_warms_up_and_ends_with_the_run() -> None:
    schedule = Schedule(budgets=(10**12,), warmup=0.1, final_learning_rate=0.1)
    rates = [schedule.learning_rate(1.0, (step + 1) / 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert max(rates) == rates[9]
    assert rates[-1] == pytest.approx(0.1)
    for step in (31, 54, 80):
        progress = (step - 9) / 90
        assert rates[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
    assert replace(schedule, warmup=0.0).learning_rate(1.0, 1.0) == pytest.approx(0.1)


def test_wsd_is_flat_between_warm_up_and_decay() -> None:
    schedule = Schedule(kind="wsd", budgets=(100,), decay=0.2, final_learning_rate=0.0)
    rates = [schedule.learning_rate(1.0, flops / 100) for flops in range(1, 101)]
    assert rates[4] == pytest.approx(0.5)
    assert rates[9:80] == pytest.approx([1.0] * 71)
    assert (rates[89], rates[-1]) == pytest.approx((0.5, 0.0))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"budgets": (1, 2)}, "must be one"), ({"warmup": 0.5, "decay": 0.5}, "less than 1")],
)
def test_several_budgets_or_no_room_are_refused(fields: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Schedule(**{"kind": "wsd", "budgets": (1,)} | fields)  # type: ignore[arg-type]
