"""`modbench plan SUITE --price`: hours, costs and memory from shapes and a data sheet."""

from dataclasses import replace

import pytest

from modbench.errors import UserError
from modbench.plan.gpus import GPUS
from modbench.sweep.costs import Rate, costs
from modbench.sweep.rows import resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.wanted import Wanted, expand_planned


@pytest.fixture(scope="module")
def wanted() -> list[Wanted]:
    return expand_planned(resolve(load_suite("quick", {"train.batch": 8}), []))


def test_costs_are_gpu_hours_times_the_price(wanted: list[Wanted]) -> None:
    rate = Rate(gpu=GPUS["h100"], utilisation=0.4, price=2.5)
    flops = round(989.4e12 * 0.4 * 3600 * 100)  # a hundred hours of one GPU
    said = costs(wanted, flops, rate)
    assert "h100 at 40% of 989 TFLOP/s, 2.5 per hour: 250 in all" in said
    hours = dict(line.split() for line in said.splitlines()[2:6])
    runs = len(wanted)
    of_64, of_256 = (f"{100 / min(count, runs):.1f}" for count in (64, 256))
    assert hours == {"1": "100.0", "8": "12.5", "64": of_64, "256": of_256}


def test_a_model_that_does_not_fit_is_told_with_what_does(wanted: list[Wanted]) -> None:
    small = Rate(gpu=replace(GPUS["h100"], memory=15_000_000), utilisation=0.4, price=1.0)
    said = costs(wanted, 10**15, small)
    assert "it does not fit: at most" in said


def test_a_price_is_above_0() -> None:
    with pytest.raises(UserError, match="--price is 0; it must be above 0"):
        Rate(gpu=GPUS["h100"], utilisation=0.4, price=0.0)


def test_processes_must_divide_the_experts() -> None:
    settings = {"train.parallel": {"expert": 3}, "train.batch": 6}
    with pytest.raises(UserError, match=r"expert = 3; it must divide the number of experts .* is 8"):
        expand_planned(resolve(load_suite("quick", settings), []))


def test_gpus_that_can_not_run_it_have_no_hours() -> None:
    suite = load_suite("quick", {"train.parallel": {"data": 4}, "train.batch": 8})
    said = costs(
        expand_planned(resolve(suite, [])), 10**15, Rate(gpu=GPUS["h100"], utilisation=0.4, price=1.0)
    )
    assert [line.split()[0] for line in said.splitlines()[2:5]] == ["8", "64", "256"]
