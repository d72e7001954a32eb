"""Curves without an optimum, missing seeds and unfinished cells: shown by name, never as a number."""

import csv
import io
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest

from modbench.errors import UserError
from modbench.report.page import write_report
from modbench.report.record import CellRecord
from modbench.report.store import append_record

BUDGETS = (10**12, 3 * 10**12, 10**13)
WIDTHS = (32, 48, 64, 96, 128)
RATES = {32: 0.00707, 48: 0.00577, 64: 0.005, 96: 0.00408, 128: 0.00354}
PLAN = {
    "learning_rates": [0.0025, 0.005, 0.01],
    "extensions": 2,
    "exponent": -0.5,
    "margin": 0.01,
    "middle_width": 64,
    "middle_budget": BUDGETS[1],
    "seed": 0,
}
Loss = Callable[[float], float]
VALLEY: Loss = lambda x: 4 + 0.1 * x**2  # noqa: E731
SEEDS = (0, 1, 2)


def _sizes(width: int) -> dict[str, int]:
    return {
        "parameters": 14 * width**2,
        "active_parameters": 12 * width**2,
        "forward_flops_per_token": 24 * width**2,
    }


class Sweep:
    """Records of a made-up sweep in ``folder``."""

    def __init__(self, folder: Path, make: Callable[..., CellRecord]) -> None:
        self.folder, self.make = folder, make

    def add(self, scheme: str, width: int, budget: int, **fields: Any) -> CellRecord:
        """A record, with noise between seeds, of the rate that the law gives unless ``rate`` does."""
        seed, loss = fields.pop("seed", 0), fields.pop("loss", 4.0)
        record = self.make(
            f"{scheme}/w{width}",
            router=scheme,
            seed=seed,
            loss=loss + ((7 * width + 5 * seed) % 11 - 5) / 5000,
            model={"width": width},
            train={"budget": budget, "learning_rate": fields.pop("rate", RATES[width])},
            suite={
                "name": "fake",
                "version": 1,
                "rank_by": "heldout_loss",
                "isoflop": PLAN | fields.pop("plan", {}),
            },
            metrics={} if "status" in fields else _sizes(width),
            **fields,
        )
        append_record(self.folder, record)
        return record

    def scheme(
        self,
        name: str,
        curve: Loss = VALLEY,
        seeds: tuple[int, ...] = SEEDS,
        widths: tuple[int, ...] = WIDTHS,
        missing: tuple[int, int] | None = None,
    ) -> None:
        """A finished scheme whose loss is ``curve`` of the logarithm of width over the middle one.
        ``missing``: width and seed of a run that is not there."""
        for budget in BUDGETS:
            for width in widths:
                for seed in seeds if budget == BUDGETS[1] else seeds[:1]:
                    if (width, seed) == missing:
                        continue
                    self.add(name, width, budget, seed=seed, loss=curve(log(width / 64)))
        for rate in (0.0025, 0.01):
            self.add(name, 64, BUDGETS[1], rate=rate, loss=curve(0) + 0.1)

    def page(self) -> str:
        write_report(self.folder)
        return (self.folder / "leaderboard.md").read_text()

    def row(self, scheme: str) -> str:
        """The row of ``scheme`` in the table of the middle budget's optima."""
        table = self.page().partition("## 3e+12 training FLOPs")[2]
        return next(line for line in table.splitlines() if f"| {scheme} |" in line)

    def optima(self, scheme: str) -> list[dict[str, str]]:
        self.page()
        rows = csv.DictReader(io.StringIO((self.folder / "optima.csv").read_text()))
        return [row for row in rows if row["scheme"] == scheme]


@pytest.fixture
def sweep(tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr("modbench.report.isoflop_figures.isoflop_figures", lambda *_: {})
    return Sweep(tmp_path, fakes.make_record)


@pytest.mark.parametrize(
    ("curve", "widths", "verdict"),
    [
        (lambda x: 4 + 0.1 * (x - 2) ** 2, WIDTHS, "edge-high"),
        (lambda x: 4 + 0.1 * (x + 2) ** 2, WIDTHS, "edge-low"),
        (lambda x: 4 - 0.1 * x**2, WIDTHS, "open-down"),
        (VALLEY, (48, 64), "too-few"),
    ],
)
def test_family_without_an_interior_optimum_is_named_and_gets_no_number(
    curve: Loss, widths: tuple[int, ...], verdict: str, sweep: Sweep
) -> None:
    sweep.scheme("vanilla")
    sweep.scheme("mod", curve, widths=widths)
    row = sweep.row("mod")
    assert verdict in row
    assert row.startswith("| - | mod | - | - |")
    assert "| 1 | vanilla | 3.99" in sweep.row("vanilla")
    of_fit = [one for one in sweep.optima("mod") if one["fit"] == "parabola"]
    assert [one["verdict"] for one in of_fit] == [verdict] * len(BUDGETS)
    numbers = ("rank", "loss", "loss_low", "active_parameters", "speed_up")
    assert {one[name] for one in of_fit for name in numbers} == {""}


def test_one_seed_gives_an_optimum_without_an_interval_and_the_reason(sweep: Sweep) -> None:
    sweep.scheme("vanilla", seeds=(0,))
    row = sweep.row("vanilla")
    assert row.startswith("| - | vanilla | 4.0")
    assert "interior; no interval: one seed: no cell was repeated, so the noise is unknown" in row


def test_missing_seed_shows_at_its_size(sweep: Sweep) -> None:
    sweep.scheme("vanilla", missing=(96, 2))
    table = sweep.page().partition("## 3e+12 training FLOPs")[2].partition("##")[0]
    sizes = [line.split(" | ") for line in table.splitlines() if " x 4 | " in line]
    assert {line[1]: line[6] for line in sizes} == {
        f"{width} x 4": "2" if width == 96 else "3" for width in WIDTHS
    }


@pytest.mark.parametrize("status", ["failed", "diverged", "oom"])
def test_unfinished_cells_stay_with_their_reason(status: str, sweep: Sweep) -> None:
    sweep.scheme("vanilla")
    lost = sweep.add("vanilla", 64, BUDGETS[0], rate=0.04, status=status, error="it broke in step 3")
    assert f"0.04, seed 0: {status} (it broke in step 3)" in sweep.page()
    rows = csv.DictReader(io.StringIO((sweep.folder / "leaderboard.csv").read_text()))
    (row,) = (row for row in rows if lost.key in row["records"].split())
    assert status in row["status"]
    assert "it broke in step 3" in row["note"]


def test_report_of_a_curve_that_mixes_settings_is_refused_by_name(sweep: Sweep) -> None:
    sweep.scheme("vanilla")
    sweep.add("vanilla", 64, BUDGETS[0], options={"capacity": 0.5})
    with pytest.raises(UserError, match=r"two runs of vanilla have budget 1e\+12, size 49152"):
        write_report(sweep.folder)


def test_plan_of_the_learning_rates_is_that_of_the_newest_record(sweep: Sweep) -> None:
    sweep.scheme("vanilla")
    changed = {"learning_rates": [0.005, 0.01, 0.02], "extensions": 0}
    later = "2026-01-02T00:00:00+00:00"
    sweep.add("vanilla", 64, BUDGETS[1], rate=0.02, loss=9.0, plan=changed, finished=later)
    sweep.page()
    rates = csv.DictReader(io.StringIO((sweep.folder / "learning_rates.csv").read_text()))
    assert {row["verdict"] for row in rates} == {"edge"}
