"""`modbench plan SUITE --price`: hours and costs from FLOPs and a data sheet."""

from pathlib import Path

import pytest
from small_suite import write_suite

from modbench.plan.gpus import GPUS, Cluster, utilisation_at
from modbench.sweep.costs import costs_as_table, priced
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
    cluster = Cluster(GPUS["h100"], price=2.5, utilisation=0.4)
    runs = len(wanted)
    each = round(989.4e12 * 0.4 * 3600 * 100 / runs)  # a hundred hours of one GPU in all
    costs = priced([(item, each) for item in wanted], cluster)
    assert costs.hours == pytest.approx({gpus: 100 / min(gpus, runs) for gpus in (1, 8, 64, 256)})
    assert "2.5 per hour: 250 in all" in costs_as_table(costs)
    of_scheme = sum(item.scheme == "vanilla" for item in wanted)
    vanilla = costs.schemes[0]
    assert (vanilla.scheme, vanilla.runs) == ("vanilla", of_scheme)
    assert vanilla.training_flops == of_scheme * each
    assert vanilla.price == pytest.approx(250 * of_scheme / runs)


def test_hours_follow_the_width_of_the_models(wanted: list[Wanted]) -> None:
    width = wanted[0].run.model.width
    by_width = Cluster(GPUS["h100"], price=1.0)
    fixed = Cluster(GPUS["h100"], price=1.0, utilisation=utilisation_at(width))
    flops_of = [(item, 10**21) for item in wanted]
    assert priced(flops_of, by_width).hours == priced(flops_of, fixed).hours
    assert utilisation_at(1) == utilisation_at(192) == 0.1
    assert utilisation_at(10**6) == utilisation_at(2048) == 0.4
    assert 0.17 < utilisation_at(640) < 0.28


def test_gpus_that_can_not_run_it_have_no_hours(tmp_path: Path) -> None:
    flops_of = [(item, 10**15) for item in planned(tmp_path, parallel={"data": 4})]
    assert [*priced(flops_of, Cluster(GPUS["h100"], price=1.0)).hours] == [8, 64, 256]
