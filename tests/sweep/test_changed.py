"""A suite that was changed after some of its runs were trained."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from modbench.errors import UserError
from modbench.records.finished import finished
from modbench.records.store import append_record
from modbench.sweep.command import store_suite
from modbench.sweep.job import run_record
from modbench.sweep.refuse import check_unchanged
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, parse_suite
from modbench.sweep.wanted import Wanted, expand, expand_planned, losses_of

TABLES: dict[str, Any] = {
    "suite": {"name": "mine"},
    "model": {"layers": 2, "heads": 1},
    "data": {"tokenizer": "bytes"},
    "train": {"sequence": 32, "batch": 2},
    "sweep": {"budgets": [10**10, 2 * 10**10, 4 * 10**10], "seeds": [0, 1]},
    "schemes": [{"router": "vanilla"}, {"router": "mod"}],
}
GRIDS: dict[str, Any] = {"isoflop": {"width_step": 2}}
MACHINE = {"cpu": None, "gpu": None, "threads": 1, "torch": "0"}
DATA = {"sha256": "ab" * 32, "train_tokens": 9, "heldout_tokens": 9}


def suite(**tables: Any) -> Suite:
    return parse_suite({**TABLES, **tables}, "mine.toml")


def record(folder: Path, of: Suite, runs: list[Wanted], status: str = "ok") -> None:
    """Record ``runs`` of the suite ``of``."""
    error = None if status == "ok" else "it did not fit"
    store_suite(resolve(of), runs, runs, [], folder, finished(folder))
    for wanted in runs:
        (budget,) = wanted.run.schedule.budgets
        end = dict.fromkeys(("steps", "tokens", "flops", "flops_nominal"), 1)
        ends = [end | {"budget": budget, "audit": []}] if status == "ok" else []
        start = datetime.now(UTC)
        append_record(folder, run_record(wanted.run, DATA, MACHINE, status, error, start, ends=ends))


def check(now: Suite, folder: Path) -> None:
    """Run the suite ``now`` into ``folder``."""
    rows, records = resolve(now), finished(folder)
    check_unchanged(rows, expand(rows, losses_of(records)), records, folder)


def run(folder: Path, of: Suite) -> None:
    """Record all runs of a suite whose middle learning rate is best."""
    record(folder, of, expand_planned(resolve(of)))


def test_suites_without_grids_may_change(tmp_path: Path) -> None:
    run(tmp_path, suite())
    check(suite(), tmp_path)
    check(suite(train={"sequence": 32, "batch": 4}), tmp_path)


def test_runs_that_did_not_end_well_are_no_reason_to_refuse(tmp_path: Path) -> None:
    grids = suite(**GRIDS)
    record(tmp_path, grids, expand_planned(resolve(grids)), "oom")
    check(suite(**GRIDS, train={"sequence": 32, "batch": 1}), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"sequence": 32, "batch": 4}},
        {"schemes": [{"router": "vanilla"}, {"router": "mod", "options": {"capacity": 0.25}}]},
    ],
    ids=["batch", "option"],
)
def test_a_curve_never_mixes_settings(change: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, suite(**GRIDS))
    with pytest.raises(UserError, match="with other settings than the suite has now"):
        check(suite(**{**GRIDS, **change}), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"isoflop": {"width_step": 2, "learning_rates": [5e-3, 1e-2, 2e-2]}},
        {"sweep": {"budgets": [*TABLES["sweep"]["budgets"], 8 * 10**10], "seeds": [0, 1, 2]}},
    ],
    ids=["learning rates", "a budget and a seed more"],
)
def test_an_isoflop_suite_may_grow(change: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, suite(**GRIDS))
    check(suite(**{**GRIDS, **change}), tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"exponent": -0.25}, r"\[isoflop\] exponent -0.5 \(now -0.25\); a curve must not hold both"),
        ({"margin": 0.02}, r"\[isoflop\] margin 0.01 \(now 0.02\); a margin chosen after the results"),
    ],
)
def test_a_results_folder_has_one_law_and_one_margin(
    change: dict[str, float], sentence: str, tmp_path: Path
) -> None:
    run(tmp_path, suite(**GRIDS))
    with pytest.raises(UserError, match=sentence):
        check(suite(isoflop={"width_step": 2, **change}), tmp_path)


def test_a_scheme_that_gets_another_label_may_change(tmp_path: Path) -> None:
    run(tmp_path, suite(**GRIDS))
    other = {"router": "mod", "label": "mod, a quarter", "options": {"capacity": 0.25}}
    check(suite(**GRIDS, schemes=[{"router": "vanilla"}, other]), tmp_path)
