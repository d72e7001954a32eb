"""Suites with isoFLOP grids: what is refused, and the runs that follow from the losses found so far."""

from typing import Any

import pytest

from modbench.errors import UserError
from modbench.records.finished import Finished
from modbench.routing.build import meta_decoder
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, parse_suite
from modbench.sweep.wanted import Wanted, expand, expand_planned, losses_of
from modbench.train.config import TrainConfig
from modbench.train.counted import flops_per_step

SCHEMES = [{"router": "vanilla"}, {"router": "mod", "tokens_per_parameter": 10.0}]


def suite(schemes: list[dict[str, Any]] = SCHEMES, **tables: Any) -> Suite:
    content: dict[str, Any] = {
        "suite": {"name": "mine"},
        "model": {"layers": 2, "heads": 1},
        "data": {"tokenizer": "bytes"},
        "train": {"sequence": 32, "batch": 2},
        "isoflop": {"width_step": 2, "refine": False, "rate_seed": 0},
        "sweep": {"budgets": [10**10, 2 * 10**10, 4 * 10**10], "seeds": [0, 1]},
        "schemes": schemes,
    }
    return parse_suite({**content, **tables}, "mine.toml")


def rate(cell: Wanted) -> float:
    return cell.run.train.learning_rate


def of(cells: list[Wanted], scheme: str) -> list[Wanted]:
    return [cell for cell in cells if cell.scheme == scheme]


def test_learning_rates_are_run_first_and_all_sizes_follow_scheme_by_scheme() -> None:
    rows = resolve(suite())
    first = expand(rows)
    assert [len(of(first, scheme)) for scheme in ("vanilla", "mod")] == [3, 3]
    losses = {cell.run.key: 3.0 + (rate(cell) != 0.005) for cell in of(first, "vanilla")}
    second = expand(rows, losses)
    assert len(of(second, "mod")) == 3
    cells = of(second, "vanilla")
    assert len(cells) == len({cell.run.key for cell in cells}) == 2 + 5 * 2 + 5 + 5 + 2
    widths = {cell.run.model.width for cell in cells}
    assert {cell.label for cell in cells} == {f"vanilla/w{width}" for width in widths}
    middle = of(first, "vanilla")[0].run.model.width
    assert {rate(cell) for cell in cells if cell.run.model.width == middle} >= {0.0025, 0.005, 0.01}
    assert set(losses) <= {cell.run.key for cell in cells}


def test_all_schemes_meet_at_the_middle_budget_then_at_smaller_ones_before_seeds_are_repeated() -> None:
    rows = resolve(suite())
    losses = {cell.run.key: 3.0 + (rate(cell) != 0.005) for cell in expand(rows)}
    cells = expand(rows, losses)
    budgets = sorted({cell.budget for cell in cells})
    assert len(budgets) == 3
    first = cells[: len(losses) + 2 * (4 + 2)]  # rates; then the other sizes and the check of the law
    assert {(cell.budget, cell.run.seed) for cell in first} == {(budgets[1], 0)}
    assert {cell.scheme for cell in first} == {"vanilla", "mod"}
    order = [(cell.budget, cell.run.seed) for cell in cells]
    small, middle, large = budgets
    assert list(dict.fromkeys(order)) == [(middle, 0), (small, 0), (middle, 1), (large, 0)]


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"shapes": [{"label": "a"}]}, r"\[\[shapes\]\] and \[isoflop\] both give sizes; remove one"),
        (
            {"schemes": [{"router": "mod", "train": {"learning_rate": 0.1}}]},
            "'mod' train has learning_rate, which",
        ),
        (
            {"train": {"optimizer": "muon", "muon_learning_rate": 0.1}},
            r"\[train\] has muon_learning_rate, which \[isoflop\] takes from its learning_rates",
        ),
        ({"isoflop": {"sizes": 4}}, r"\[isoflop\]: sizes is 4; it must be an odd number"),
        (
            {"schemes": [{"router": "mod", "model": {"width": 64}}]},
            "'mod' model has width, which",
        ),
    ],
)
def test_contradictions_are_refused_by_name(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^suite mine.toml.*{sentence}"):
        suite(**tables)


def test_budgets_that_cannot_be_met_are_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"'vanilla': budget 1e.08 is too small"):
        resolve(suite(sweep={"budgets": [10**8]}))


def test_plan_of_an_isoflop_suite_takes_the_middle_learning_rate_for_the_best() -> None:
    rows = resolve(suite())
    planned = expand_planned(rows)
    losses = {cell.run.key: 3.0 + (rate(cell) != 0.005) for cell in expand(rows)}
    assert planned == expand(rows, losses)
    assert len(planned) == 2 * (2 + 5 * 2 + 5 + 5 + 2)


def test_plan_takes_the_law_to_hold() -> None:
    rows = resolve(suite(isoflop={"width_step": 2, "rate_seed": 0}))
    assert len(expand_planned(rows)) == 2 * (2 + 5 * 2 + 2 * 2 + 5 + 5 + 2)


def test_rows_state_the_flops_of_a_training_step_of_each_size() -> None:
    row = resolve(suite()).resolved["mod"]
    config = TrainConfig(sequence=32, batch=2)
    assert row.grid_flops == [
        [flops_per_step(meta_decoder("mod", row.options, shape), config) for shape in grid]
        for grid in row.grids
    ]


def test_learning_rate_follows_the_record_that_a_report_would_show() -> None:
    def record(status: str, loss: float | None, finished: str) -> list[Finished]:
        run = Finished("run", "k", "ok" if loss else status, finished=finished)
        heldout = Finished(
            "measurement", "m", status, measures="heldout", finished=finished, run="k", loss=loss
        )
        return [run, heldout] if loss else [run]

    early, late = record("ok", 2.0, "2026-01-01"), record("ok", 1.0, "2026-01-02")
    diverged, failed = record("diverged", None, "2026-01-03"), record("failed", None, "2026-01-04")
    for order in (
        [*late, *early, *diverged, *failed],
        [*failed, *diverged, *early, *late],
    ):
        assert losses_of(order) == {"k": 1.0}
    assert losses_of(diverged) == {"k": None}
    assert losses_of(failed) == {}
    lost = Finished("measurement", "m", "diverged", measures="heldout", finished="2026", run="k")
    assert losses_of([early[0], lost]) == {"k": None}
