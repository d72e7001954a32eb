"""`modbench plan SUITE --price`: hours, costs and memory from shapes and a data sheet."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_suite import write_suite

from modbench.plan.gpus import GPUS, Cluster, utilisation_at
from modbench.sweep.costs import costs, measured_pass, outlined
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
    cluster = Cluster(gpu=GPUS["h100"], utilisation=0.4, price=2.5)
    flops = round(989.4e12 * 0.4 * 3600 * 100)  # a hundred hours of one GPU
    said = costs(wanted, flops, cluster)
    assert "h100 at 40% of 989 TFLOP/s; 2.5 per hour: 250 in all" in said
    hours = dict(line.split() for line in said.splitlines()[2:6])
    runs = len(wanted)
    assert hours == {str(gpus): f"{100 / min(gpus, runs):.1f}" for gpus in (1, 8, 64, 256)}


def test_hours_follow_the_width_of_the_models(wanted: list[Wanted]) -> None:
    width = wanted[0].run.model.width
    by_width = Cluster(gpu=GPUS["h100"], price=1.0)
    fixed = Cluster(gpu=GPUS["h100"], utilisation=utilisation_at(width), price=1.0)
    one, other = (costs(wanted, 10**21, cluster) for cluster in (by_width, fixed))
    assert "assumed by the width of a model" in one
    assert one.splitlines()[2:6] == other.splitlines()[2:6]
    assert utilisation_at(1) == utilisation_at(192) == 0.1
    assert utilisation_at(10**6) == utilisation_at(2048) == 0.4
    assert 0.17 < utilisation_at(640) < 0.28


def test_memory_is_that_of_a_pass_of_the_largest_model(wanted: list[Wanted]) -> None:
    run = wanted[0].run
    measured = measured_pass(run, outlined(run))
    room = measured.memory(5).total
    said = costs(wanted, 10**15, Cluster(gpu=replace(GPUS["h100"], memory=room), price=1.0))
    row = next(line for line in said.splitlines() if line.startswith("vanilla"))
    assert row.split()[1:3] == [f"{run.model.width}x{run.model.layers}", str(run.train.rows)]
    share = measured.memory(run.train.rows).total / room
    assert row.split()[-2:] == [f"{share:.1%}", "5"]


def test_gpus_that_can_not_run_it_have_no_hours(tmp_path: Path) -> None:
    cluster = Cluster(gpu=GPUS["h100"], price=1.0)
    said = costs(planned(tmp_path, parallel={"data": 4}), 10**15, cluster)
    assert [line.split()[0] for line in said.splitlines()[2:5]] == ["8", "64", "256"]
