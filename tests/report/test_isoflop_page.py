"""The report of an isoFLOP suite, from made-up records of known curves."""

import csv
import io
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest

from modbench.report.isoflop import sweep_of
from modbench.report.isoflop_page import isoflop_page
from modbench.report.leaderboard import Leaderboard
from modbench.report.page import write_report
from modbench.report.record import CellRecord
from modbench.report.store import append_record

BUDGETS = (10**12, 3 * 10**12, 10**13)
WIDTHS = (32, 48, 64, 96, 128)
PLAN = {
    "learning_rates": [0.0025, 0.005, 0.01],
    "extensions": 2,
    "exponent": -0.5,
    "margin": 0.01,
    "middle_width": 64,
    "middle_budget": BUDGETS[1],
    "seed": 0,
}
RATES = {32: 0.00707, 48: 0.00577, 64: 0.005, 96: 0.00408, 128: 0.00354}
Make = Callable[..., CellRecord]


def curve_loss(scheme: str, width: int, budget: int, seed: int) -> float:
    best = 64 * (budget / BUDGETS[1]) ** 0.2
    lead = 0.3 if scheme == "mod" else 0.0
    noise = ((7 * width + 5 * seed) % 11 - 5) / 5000
    return 4 - 0.3 * log(budget / BUDGETS[1]) + 0.1 * log(width / best) ** 2 - lead + noise


def records(
    make: Make, schemes: tuple[str, ...] = ("vanilla", "mod"), **others: Any
) -> list[CellRecord]:
    """The finished sweep of ``schemes``: three seeds at the middle budget, and trials of rates."""
    found = []

    def add(scheme: str, width: int, budget: int, seed: int, rate: float, worse: float = 0.0) -> None:
        found.append(
            make(
                f"{scheme}/w{width}",
                router=scheme,
                seed=seed,
                loss=curve_loss(scheme, width, budget, seed) + worse,
                train={"budget": budget, "learning_rate": rate},
                metrics={
                    "active_parameters": 12 * width**2,
                    "forward_flops_per_token": 24 * width**2,
                    "train_flops": budget - 10,
                },
                model_width=width,
                **others,
            )
        )

    for scheme in schemes:
        for budget in BUDGETS:
            for width in WIDTHS:
                for seed in range(3 if budget == BUDGETS[1] else 1):
                    add(scheme, width, budget, seed, RATES[width])
        for rate in (0.0025, 0.01):
            add(scheme, 64, BUDGETS[1], 0, rate, 0.1)
        for rate in (0.00177, 0.00708):
            add(scheme, 128, BUDGETS[1], 0, rate, 0.1)
    return found


@pytest.fixture
def make(fakes: Any) -> Make:
    """`make_record` with a width and the plan of the learning rates."""

    def made(label: str, *, model_width: int, **fields: Any) -> CellRecord:
        suite = {"name": "fake", "version": 1, "rank_by": "heldout_loss", "isoflop": PLAN}
        made_up: CellRecord = fakes.make_record(
            label, model={"width": model_width}, suite=suite, **fields
        )
        return made_up

    return made


def page_of(found: list[CellRecord]) -> str:
    sweep = sweep_of(found, Leaderboard.of(found))
    assert sweep is not None
    return isoflop_page(sweep)


def table_under(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under ``heading``."""
    lines = page[page.index(heading) :].split("\n\n")
    table = next(part for part in lines if part.startswith("| rank"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_each_scheme_is_ranked_at_its_optimum(make: Make) -> None:
    page = page_of(records(make))
    for budget in ("1e+12", "3e+12", "1e+13"):
        first, second = table_under(page, f"## {budget} training FLOPs")
        assert (first[:2], second[:2]) == (["1", "mod"], ["2", "vanilla"])
        assert first[4].startswith("-0.")
        assert first[4].endswith("better")
        assert second[4] == second[5] == "-"
    assert "| mod | 64 x 4 |" in page
    assert "width 128: 0.00354 by the law, which is best" in page


def test_speed_up_is_of_the_dense_model_at_equal_loss(make: Make) -> None:
    # A lead of 0.3 nats is a factor e of budget on this law, less than the ratio of the budgets.
    middle = table_under(page_of(records(make)), "## 1e+12 training FLOPs")[0]
    assert float(middle[5].split()[0]) == pytest.approx(2.718, rel=0.02)
    assert table_under(page_of(records(make)), "## 1e+13 training FLOPs")[0][5].startswith(
        "at least 1.00"
    )


def test_optima_csv_has_all_fits_at_full_precision(make: Make, tmp_path: Path) -> None:
    for one in records(make):
        append_record(tmp_path, one)
    write_report(tmp_path)
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
    assert {"isoflop_curves.png", "normalised_loss.svg", "speed_up.png", "learning_rates.svg"} <= set(
        files
    )


def test_scheme_that_fails_the_audit_is_not_ranked(make: Make) -> None:
    found = [*records(make, ("vanilla",)), *records(make, ("mod",), failed_probes=(1,))]
    first, second = table_under(page_of(found), "## 3e+12 training FLOPs")
    assert (first[:2], second[:2]) == (["1", "vanilla"], ["-", "mod"])
    assert "not ranked: failed audit probe 1 causal" in second[-1]


def test_diverged_cells_stay_with_their_reason(make: Make) -> None:
    lost = make(
        "mod/w64",
        router="mod",
        status="diverged",
        model_width=64,
        train={"budget": BUDGETS[1], "learning_rate": 0.02},
    )
    page = page_of([*records(make), lost])
    assert "- **mod/w64**, 3e+12 FLOPs, learning rate 0.02, seed 0: diverged (the loss is not" in page
    assert "0.02: diverged" in page


def test_sweep_without_a_chosen_rate_has_no_curves(make: Make, tmp_path: Path) -> None:
    only = [r for r in records(make) if r.cell["train"]["learning_rate"] == 0.0025]
    for one in only:
        append_record(tmp_path, one)
    write_report(tmp_path)
    assert "No scheme has a learning rate yet" in (tmp_path / "leaderboard.md").read_text()
    assert not (tmp_path / "optima.csv").exists()
