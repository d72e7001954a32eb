"""The report of an isoFLOP suite, from made-up records of known curves."""

import csv
import io
import re
from collections import Counter
from functools import partial
from math import log
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from isoflop_made_up import (
    BUDGETS,
    WIDTHS,
    Make,
    analysed,
    curve_loss,
    records,
    run,
    sweep_records,
    table_under,
)
from made_up_records import replace, store

from modbench.records.line import as_json
from modbench.records.result import Result
from modbench.report.isoflop.page import isoflop_page
from modbench.report.markdown import Page
from modbench.report.suite import suite_of
from modbench.report.table import to_csv
from modbench.report.write import DERIVED, WRITTEN, write_report


def page_of(found: list[Result]) -> Page:
    return isoflop_page(analysed(found))


def of_equal_runs(found: list[Result]) -> Any:
    """The only difference of runs with equal settings."""
    (pair,) = (pair for pair in analysed(found).rows.pairs if pair.budget is None)
    return pair


def test_each_scheme_is_ranked_at_its_optimum(make: Make) -> None:
    page = page_of(records(make))
    for budget in ("1e+12", "3e+12", "1e+13"):
        first, second = table_under(page, f"{budget} training FLOPs")
        assert (first[:2], second[:2]) == (["best", "mod"], ["worse than best", "vanilla"])
        assert first[2] == second[2] == ("3" if budget == "3e+12" else "1")  # seeds
        assert first[4].startswith("-0.")
        assert first[4].endswith("better")
        assert second[4] == second[5] == "-"
    text = page.to_markdown()
    assert "| mod | 64 x 4 |" in text
    assert "width 128: 0.00354 by the law, which is best" in text


def test_runs_with_even_gates_are_counted_by_scheme(make: Make, fakes: ModuleType) -> None:
    even = fakes.make_routing((1,), first=50, exponent=-9)  # gates around 0.1
    text = page_of([*records(make, ("vanilla",)), *records(make, ("mod",), routing=even)]).to_markdown()
    (line,) = re.findall(r"- In (\d+) of (\d+) runs of (\w+) gates of a layer hardly vary;", text)
    assert (line[0], line[2]) == (line[1], "mod")


def test_speed_up_is_of_the_dense_model_at_equal_loss(make: Make) -> None:
    # A lead of 0.3 nats is a factor e of budget on this law, less than the ratio of the budgets.
    middle = table_under(page_of(records(make)), "1e+12 training FLOPs")[0]
    assert float(middle[5].split()[0]) == pytest.approx(2.718, rel=0.02)
    assert table_under(page_of(records(make)), "1e+13 training FLOPs")[0][5].startswith("at least 1.00")


def test_optimum_follows_from_the_rows_of_leaderboard_csv(make: Make) -> None:
    board = suite_of(records(make))
    suite = analysed(records(make))
    runs = list(csv.DictReader(io.StringIO(to_csv(board.schemes))))
    assert board.schemes["position"].isna().all()
    assert {row["label"] for row in runs} == {"vanilla", "mod"}
    of_curve = [
        row
        for row in runs
        if (row["label"], row["budget"], row["on_curve"]) == ("mod", str(BUDGETS[1]), "True")
    ]
    assert [(row["width"], row["learning_rate"], row["seeds"]) for row in of_curve] == [
        *(("128", "0.00354", "3"), ("32", "0.00707", "3"), ("48", "0.00577", "3")),
        *(("64", "0.005", "3"), ("96", "0.00408", "3")),
    ]
    size = np.log([float(row["active_parameters"]) for row in of_curve])
    loss = [float(row["heldout_loss"]) for row in of_curve]
    square, slope, constant = np.polyfit(size, loss, 2)
    (optimum,) = (row for row in suite.best(BUDGETS[1]) if row.scheme == "mod")
    assert optimum.active_parameters == pytest.approx(np.exp(-slope / (2 * square)), rel=1e-6)
    assert optimum.loss == pytest.approx(constant - slope**2 / (4 * square), rel=1e-8)
    assert optimum.curvature == pytest.approx(square)
    assert board.schemes["budget_spent"].between(0.999, 1, inclusive="neither").all()


@pytest.mark.figures
def test_optima_csv_has_all_fits_at_full_precision(make: Make, tmp_path: Path) -> None:
    write_report(store(tmp_path, records(make)))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "optima.csv").read_text())))
    assert {(row["budget"], row["fit"], row["scheme"]) for row in rows} == {
        (str(budget), fit, scheme)
        for budget in BUDGETS
        for fit in ("parabola", "akima", "surface")
        for scheme in ("vanilla", "mod")
    }
    row = next(
        r for r in rows if (r["budget"], r["fit"], r["scheme"]) == (str(BUDGETS[1]), "parabola", "mod")
    )
    assert float(row["loss"]) == pytest.approx(3.7, abs=2e-3)
    assert float(row["active_parameters"]) == pytest.approx(12 * 64**2, rel=0.02)
    assert float(row["loss_low"]) < float(row["loss"]) < float(row["loss_high"])
    rates = list(csv.DictReader(io.StringIO((tmp_path / "learning_rates.csv").read_text())))
    assert [r["learning_rate"] for r in rates if r["chosen"] == "True"] == ["0.005", "0.005"]
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    write_report(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files
    figures = {"isoflop_curves.svg", "difference_to_dense.svg", "differences.svg", "learning_rates.svg"}
    assert figures <= set(files)
    assert set(files) <= {*DERIVED, WRITTEN}


def test_any_two_schemes_are_compared_at_their_optima_and_run_by_run(make: Make, tmp_path: Path) -> None:
    schemes = ("vanilla", "mod", "mod:gaussian")
    write_report(store(tmp_path, records(make, schemes)))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "differences.csv").read_text())))
    found = {(row["budget"], row["scheme"], row["other"]): row for row in rows}
    for budget in BUDGETS:
        row = found[str(budget), "mod:gaussian", "mod"]  # mod is the best scheme
        assert float(row["value"]) == pytest.approx(0.3, abs=1e-3)
        assert (row["verdict"], row["family"], row["runs"]) == ("worse", "best", "")
    equal = found["", "mod", "mod:gaussian"]
    assert float(equal["value"]) == pytest.approx(-0.3, abs=1e-3)
    assert (equal["runs"], equal["pairs"]) == ("25", "15")  # without trials of learning rates
    assert (equal["lower_in"], equal["verdict"]) == ("15", "")
    assert float(equal["per_efold_of_size"]) == pytest.approx(0, abs=1e-3)
    assert float(equal["at_optima"]) == pytest.approx(-0.3, abs=1e-3)
    page = (tmp_path / "leaderboard.md").read_text()
    assert "| mod | mod:gaussian | -0.300 (-0.300 to -0.300) |" in page
    assert Counter(row["family"] for row in rows) == {"dense": 6, "best": 6, "": 3}
    assert "adjusted by Holm's method for 6 comparisons: all those with the dense row" in page


def test_scheme_that_fails_the_audit_is_not_ranked(make: Make) -> None:
    found = [*records(make, ("vanilla",)), *records(make, ("mod",), failed_probes=(1,))]
    first, second = table_under(page_of(found), "3e+12 training FLOPs")
    assert (first[:2], second[:2]) == (["best", "vanilla"], ["not ranked", "mod"])
    assert not second[3].endswith(("better", "worse", "undecided"))
    assert "not ranked: failed audit probe 1 causal" in second[-1]
    assert "### Differences between schemes" not in page_of(found).to_markdown()


def test_runs_with_the_seed_of_the_learning_rates_are_on_no_curve(make: Make) -> None:
    plan = {"seed": 7, "seed_on_curve": False}
    found = sweep_records(make, "mod", partial(curve_loss, "mod"), rate_seed=7, plan=plan)
    curves = analysed(found).curves
    assert [*curves.rates.loc[curves.rates["chosen"], "learning_rate"]] == [0.005]
    assert {*curves.runs["seed"]} == {0, 1, 2}
    assert "0.00354 by the law, which is best" in page_of(found).to_markdown()


def with_lower_loss(found: list[Result], width: int, rate: float, lower: float) -> list[Result]:
    """The records, with a loss that is lower by ``lower`` in the runs of ``width`` at ``rate``."""
    changed = []
    for result in found:
        if (result.width, result.learning_rate) == (width, rate):
            heldout, *others = result.measurements
            loss = heldout.result.metrics["heldout_loss"] - lower
            metrics = heldout.result.metrics | {"heldout_loss": loss}
            heldout = replace(heldout, result=as_json(heldout.result) | {"metrics": metrics})
            result = replace(result, measurements=(heldout, *others))
        changed.append(result)
    return changed


@pytest.mark.parametrize(("lower", "fails"), [(0.05, False), (0.1005, False), (0.3, True)])
def test_law_that_loses_more_than_the_noise_floor_is_a_remark(
    make: Make, lower: float, fails: bool
) -> None:
    page = page_of(with_lower_loss(records(make), 128, 0.00177, lower)).to_markdown()
    for scheme in ("mod", "vanilla"):
        remark = f"law of {scheme} costs more than the noise floor (width 128: 0.00354 by the law, "
        assert (remark in page) == fails


def test_curves_are_those_of_the_refined_exponent(make: Make) -> None:
    """The check at both ends asks for twice the law's rate at 32 and half of it at 128: an exponent of
    -1.5 in place of -0.5."""
    middle, plan = BUDGETS[1], {"seed": 7, "seed_on_curve": False, "refine": True}
    rates = {32: (0.00353, 0.00707, 0.0141), 64: (0.0025, 0.005, 0.01), 128: (0.00177, 0.00354, 0.00708)}
    losses = {32: (4.1, 4.0, 3.9), 64: (4.1, 4.0, 4.1), 128: (3.9, 4.0, 4.1)}
    checks = [
        run(make, "mod", width, middle, seed=7, rate=rate, loss=loss, plan=plan)
        for width in rates
        for rate, loss in zip(rates[width], losses[width], strict=True)
    ]
    old = [run(make, "mod", width, middle, plan=plan) for width in WIDTHS if width != 64]
    law = {32: 0.0141, 48: 0.00769, 64: 0.005, 96: 0.00272, 128: 0.00177}
    new = [run(make, "mod", width, middle, rate=law[width], plan=plan) for width in WIDTHS]
    found = [*checks, *old, *new]
    curves = analysed(found).curves
    assert curves.rates["exponent"].unique() == pytest.approx([-1.5], abs=0.01)
    points = curves.points[["width", "learning_rate"]]
    assert {*points.itertuples(index=False, name=None)} == set(law.items())
    page = page_of(found)
    assert "refined from -0.5" in " ".join(table_under(page, "Learning rates")[0])


def test_schemes_of_other_processor_types_are_marked_at_their_budget(make: Make) -> None:
    found = records(make)
    moved = [
        run
        for run in found
        if not (run.scheme == "mod" and run.budget == BUDGETS[0] and run.width == 64)
    ]
    other = sweep_records(
        make, "mod", partial(curve_loss, "mod"), environment={"cpu": "Another CPU"}, widths=(64,)
    )
    moved += [run for run in other if run.budget == BUDGETS[0]]
    page = page_of(moved)
    assert table_under(page, "1e+12 training FLOPs")[0][4].endswith("better ‡")
    assert table_under(page, "3e+12 training FLOPs")[0][4].endswith("better")
    text = page.to_markdown()
    assert text.count("‡: the two rows did not run on one processor type") == 1
    assert "‡: the two" not in page_of(found).to_markdown()
    types = {row.processor for row in analysed(moved).best(BUDGETS[0]) if row.scheme == "mod"}
    assert types == {"cpu Another CPU, threads 2; cpu Imaginary CPU, threads 2"}


def test_seeds_of_a_cell_are_averaged_before_the_interval(make: Make) -> None:
    """Three seeds at the middle budget make one cell each, so they don't narrow the interval."""
    pair = of_equal_runs(records(make, ("vanilla", "mod")))
    assert (pair.runs, pair.pairs) == (25, 15)
    assert of_equal_runs(records(make, ("vanilla", "mod"), seeds=(0,))).pairs == 15


def test_slope_of_the_cells_is_the_change_per_e_fold_of_the_size(make: Make) -> None:
    def tilted(width: int, budget: int) -> float:
        return curve_loss("vanilla", width, budget) - 0.02 * log(12 * width**2)

    found = [*records(make, ("vanilla",)), *sweep_records(make, "mod", tilted)]
    slope = of_equal_runs(found).per_efold_of_size
    assert slope == pytest.approx(-0.02, abs=0.003)  # the optima grow with the budget
