"""A suite that was changed after some of its cells were run."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from modbench.errors import UserError
from modbench.records.record import cell_key
from modbench.records.store import append_record, finished
from modbench.sweep.cell import cell_record
from modbench.sweep.cells import Cell, by_key, expand, expand_planned, grids_of, losses_of
from modbench.sweep.changed import check_unchanged
from modbench.sweep.isoflop import middle_of, stated
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, parse_suite

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


def record(folder: Path, cells: list[Cell], status: str = "ok", of: Suite | None = None) -> None:
    """Record ``cells``, with the [isoflop] table of the suite ``of``."""
    named: dict[str, Any] = {"name": "mine", "version": 1, "rank_by": "heldout_loss"}
    if of and of.isoflop:
        rows, scheme = resolve(of), of.schemes[0]
        named |= {"isoflop": stated(of.isoflop, middle_of(grids_of(rows, scheme)), of.axes.seeds)}
    error = None if status == "ok" else "it did not fit"
    for cell in cells:
        found: dict[str, Any] = {"metrics": {"heldout_loss": 3.0} if status == "ok" else {}}
        start = datetime.now(UTC)
        append_record(folder, cell_record(cell, named, DATA, MACHINE, status, error, start, **found))


def said(now: Suite, folder: Path) -> list[str]:
    """Messages when the suite ``now`` is run into ``folder``."""
    rows, records, told = resolve(now), finished(folder), list[str]()
    cells = by_key(expand(rows, losses_of(records)))
    check_unchanged(rows, cells, records, folder, told.append)
    return told


def run(folder: Path, of: Suite) -> None:
    """Record all cells of a suite whose middle learning rate is best."""
    record(folder, expand_planned(resolve(of)), of=of)


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
        ({"sweep": {"budgets": [10**10, 2 * 10**10]}}, "train.budget 40000000000 (now 1"),
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
    record(tmp_path, expand(resolve(suite())), "oom")
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


def test_keys_of_recorded_cells_are_those_of_the_suite(tmp_path: Path) -> None:
    cells = expand(resolve(suite()))
    record(tmp_path, cells)
    assert {one.key for one in finished(tmp_path)} == {cell_key(cell) for cell in cells}
