"""A suite that was changed after some of its runs were trained."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from modbench.errors import UserError
from modbench.records.finished import finished
from modbench.records.store import append_record
from modbench.sweep.changed import check_unchanged
from modbench.sweep.job_records import run_record
from modbench.sweep.jobs import store_suite
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
    store_suite(resolve(of), runs, runs, [], folder, [])
    for wanted in runs:
        (budget,) = wanted.run.schedule.budgets
        end = dict.fromkeys(("steps", "tokens", "flops", "flops_nominal"), 1)
        ends = [end | {"budget": budget, "audit": []}] if status == "ok" else []
        start = datetime.now(UTC)
        append_record(folder, run_record(wanted.run, DATA, MACHINE, status, error, start, ends=ends))


def said(now: Suite, folder: Path) -> list[str]:
    """Messages when the suite ``now`` is run into ``folder``."""
    rows, records, told = resolve(now), finished(folder), list[str]()
    check_unchanged(rows, expand(rows, losses_of(records)), records, folder, told.append)
    return told


def run(folder: Path, of: Suite) -> None:
    """Record all runs of a suite whose middle learning rate is best."""
    record(folder, of, expand_planned(resolve(of)))


def test_an_unchanged_suite_is_nothing_to_mention(tmp_path: Path) -> None:
    run(tmp_path, suite())
    assert said(suite(), tmp_path) == []


def test_other_seeds_are_no_change(tmp_path: Path) -> None:
    run(tmp_path, suite())
    assert said(suite(sweep={**TABLES["sweep"], "seeds": [1, 2]}), tmp_path) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train": {"sequence": 32, "batch": 4}}, "'vanilla' with train.batch 2 (now 4), and 5 more;"),
        ({"model": {"layers": 4, "heads": 1}}, "'vanilla' with model.layers 2 (now 4), and"),
        ({"sweep": {"budgets": [10**10, 2 * 10**10]}}, "schedule.budgets [40000000000] (now [1"),
        (
            {"schemes": [{"router": "vanilla"}, {"router": "mod", "options": {"capacity": 0.25}}]},
            "'mod' with router.options.capacity 0.125 (now 0.25), and 2 more;",
        ),
    ],
)
def test_a_changed_setting_is_named_with_both_values(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    run(tmp_path, suite())
    (line,) = said(suite(**change), tmp_path)
    assert line.startswith(f"{tmp_path} holds runs with other settings than the suite has now: ")
    assert sentence in line


def test_rows_that_the_suite_lacks_are_named(tmp_path: Path) -> None:
    run(tmp_path, suite())
    (line,) = said(suite(schemes=[{"router": "vanilla"}]), tmp_path)
    assert line.endswith("also holds records of mod; the report shows them, too")


def test_runs_that_did_not_end_well_are_no_reason_to_warn(tmp_path: Path) -> None:
    record(tmp_path, suite(), expand(resolve(suite())), "oom")
    assert said(suite(train={"sequence": 32, "batch": 1}), tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"sequence": 32, "batch": 4}},
        {"isoflop": {"width_step": 2, "tokens_per_parameter": 10.0}},
        {"schemes": [{"router": "vanilla"}, {"router": "mod", "options": {"capacity": 0.25}}]},
    ],
    ids=["batch", "grid", "option"],
)
def test_a_curve_never_mixes_settings(change: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, suite(**GRIDS))
    with pytest.raises(UserError, match=r"with .* \(now .*; a curve must not hold both: give"):
        said(suite(**{**GRIDS, **change}), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"isoflop": {"width_step": 2, "learning_rates": [5e-3, 1e-2, 2e-2]}},
        {"isoflop": {"width_step": 2, "passes": 9.0}},
        {"sweep": {"budgets": [*TABLES["sweep"]["budgets"], 8 * 10**10], "seeds": [0, 1, 2]}},
    ],
    ids=["learning rates", "passes", "a budget and a seed more"],
)
def test_an_isoflop_suite_may_grow(change: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, suite(**GRIDS))
    assert said(suite(**{**GRIDS, **change}), tmp_path) == []


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
        said(suite(isoflop={"width_step": 2, **change}), tmp_path)


def test_a_scheme_that_gets_another_label_may_change(tmp_path: Path) -> None:
    run(tmp_path, suite(**GRIDS))
    other = {"router": "mod", "label": "mod, a quarter", "options": {"capacity": 0.25}}
    (line,) = said(suite(**GRIDS, schemes=[{"router": "vanilla"}, other]), tmp_path)
    assert line.endswith("also holds records of mod; the report shows them, too")


def test_keys_of_recorded_runs_are_those_of_the_suite(tmp_path: Path) -> None:
    runs = expand(resolve(suite()))
    record(tmp_path, suite(), runs)
    recorded = {one.key for one in finished(tmp_path) if one.kind == "run"}
    assert recorded == {wanted.run.key for wanted in runs}
