"""`modbench plan SUITE --price`: hours, costs and memory from shapes and a data sheet."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_suite import write_suite

from modbench.plan.gpus import GPUS
from modbench.sweep.costs import Rate, costs
from modbench.sweep.rows import resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.wanted import Wanted, expand_planned


def planned(folder: Path, **train: object) -> list[Wanted]:
    write_suite(folder, "priced", "vanilla", "token_choice", train={"sequence": 16, "batch": 8} | train)
    return expand_planned(resolve(load_suite(str(folder / "suite.toml")), []))


@pytest.fixture
def wanted(tmp_path: Path) -> list[Wanted]:
    return planned(tmp_path)


def test_costs_are_gpu_hours_times_the_price(wanted: list[Wanted]) -> None:
    rate = Rate(gpu=GPUS["h100"], utilisation=0.4, price=2.5)
    flops = round(989.4e12 * 0.4 * 3600 * 100)  # a hundred hours of one GPU
    said = costs(wanted, flops, rate)
    assert "h100 at 40% of 989 TFLOP/s, 2.5 per hour: 250 in all" in said
    hours = dict(line.split() for line in said.splitlines()[2:6])
    runs = len(wanted)
    assert hours == {str(gpus): f"{100 / min(gpus, runs):.1f}" for gpus in (1, 8, 64, 256)}


def test_a_model_that_does_not_fit_is_told_with_what_does(wanted: list[Wanted]) -> None:
    small = Rate(gpu=replace(GPUS["h100"], memory=5_000), utilisation=0.4, price=1.0)
    said = costs(wanted, 10**15, small)
    assert "it does not fit: at most" in said


def test_gpus_that_can_not_run_it_have_no_hours(tmp_path: Path) -> None:
    rate = Rate(gpu=GPUS["h100"], utilisation=0.4, price=1.0)
    said = costs(planned(tmp_path, parallel={"data": 4}), 10**15, rate)
    assert [line.split()[0] for line in said.splitlines()[2:5]] == ["8", "64", "256"]
