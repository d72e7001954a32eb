"""Curves without an optimum, missing seeds and unfinished runs: shown by name, never as a number."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from typing import Any

import pytest
from isoflop_made_up import BUDGETS, PLAN, WIDTHS, Make, run, sweep_records
from made_up_records import replace, store, suite_record

from modbench.errors import UserError
from modbench.records.record import SuiteRecord
from modbench.records.result import Result
from modbench.report.write import write_report

#: Loss by the logarithm of width over the middle one.
Loss = Callable[[float], float]
VALLEY: Loss = lambda x: 4 + 0.1 * x**2  # noqa: E731


class Sweep:
    """A made-up sweep, whose records are in ``folder``."""

    def __init__(self, folder: Path, make: Make) -> None:
        self.folder, self.make = folder, make
        self.results: list[Result] = []
        self.suites: list[SuiteRecord] = []  #: without any: one of all results

    def add(self, scheme: str, width: int, budget: int, **fields: Any) -> Result:
        self.results.append(run(self.make, scheme, width, budget, **fields))
        return self.results[-1]

    def scheme(
        self, name: str, curve: Loss = VALLEY, missing: tuple[int, int] | None = None, **others: Any
    ) -> None:
        """A finished scheme. ``missing``: width and seed of a run that is not there."""
        for one in sweep_records(self.make, name, lambda width, _: curve(log(width / 64)), **others):
            if (one.width, one.seed) != missing:
                self.results.append(one)

    def wanted(self, results: Sequence[Result], finished: str, **plan: Any) -> None:
        """The suite wants ``results``, by ``plan``."""
        planned = [replace(one, isoflop=PLAN | plan) for one in results]
        self.suites.append(suite_record(planned, finished))

    def page(self) -> str:
        write_report(store(self.folder, self.results, *self.suites))
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
def sweep(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr("modbench.report.write.isoflop_figures", lambda *_: {})
    return Sweep(tmp_path, make)


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
    assert row.startswith("| not ranked | mod | 3 | - | - |")
    assert "| best | vanilla | 3 | 4.000 (" in sweep.row("vanilla")
    of_fit = [one for one in sweep.optima("mod") if one["fit"] == "parabola"]
    assert [one["minimum"] for one in of_fit] == [verdict] * len(BUDGETS)
    numbers = ("position", "loss", "loss_low", "active_parameters", "speed_up")
    assert {one.get(name, "") for one in of_fit for name in numbers} == {""}


def test_one_seed_gives_an_optimum_without_an_interval_and_the_reason(sweep: Sweep) -> None:
    sweep.scheme("vanilla", seeds=(0,))
    row = sweep.row("vanilla")
    assert row.startswith("| - | vanilla | 1 | 4.0")
    assert "interior; no interval: one seed: no cell was repeated, so the noise is unknown" in row


@pytest.mark.parametrize("status", ["failed", "diverged", "oom"])
def test_unfinished_runs_stay_with_their_reason(status: str, sweep: Sweep) -> None:
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
        sweep.page()


#: Times at which suites and runs end.
FIRST, SECOND, THIRD = (f"2026-01-0{day}T00:00:00+00:00" for day in (1, 2, 3))


#: A plan in which the chosen learning rate, 0.005, is the first of those tried.
EDGE = {"learning_rates": [0.005, 0.01, 0.02], "extensions": 0}


@pytest.mark.parametrize("edge", ["mod", "vanilla"])
def test_scheme_whose_learning_rate_is_at_the_edge_is_not_ranked(edge: str, sweep: Sweep) -> None:
    for scheme in ("vanilla", "mod"):
        sweep.scheme(scheme, plan=EDGE if scheme == edge else {})
    sweep.add(edge, 64, BUDGETS[1], rate=0.02, loss=9.0, plan=EDGE)
    assert sweep.row(edge).startswith(f"| not ranked | {edge} | 3 | 4.000 (")
    assert sweep.row("vanilla" if edge == "mod" else "mod").startswith("| best |")
    page = sweep.page()
    assert page.count(f"Not ranked: {edge}. The best learning rate is the first") == len(BUDGETS)
    assert ("All comparisons rest on a dense model whose" in page) == (edge == "vanilla")


def test_lost_sizes_stay_in_the_tables_with_their_status(sweep: Sweep) -> None:
    sweep.scheme("vanilla", widths=WIDTHS[:-1])
    for seed in (2, 0, 1):
        sweep.add("vanilla", 128, BUDGETS[1], seed=seed, status="diverged", error="it is not finite")
    sweep.add("vanilla", 32, BUDGETS[1], seed=3, status="failed", error="it broke")
    assert sweep.row("vanilla").endswith("| interior; 4 of 5 sizes, w128 diverged |")
    page = sweep.page()
    assert "| vanilla | 128 x 4 | - | 0.00354 | - | - | 0 | 3 diverged |" in page
    assert re.search(r"\| 32 x 4 .* 3 \| 4\.\d+ \(.*\), 1 failed \|", page)
    lost = [line for line in page.splitlines() if line.startswith("- **vanilla/w")]
    assert [re.findall(r"w(\d+)|seed (\d)", line) for line in lost] == [
        [(width, ""), ("", seed)]
        for width, seed in (("32", "3"), ("128", "0"), ("128", "1"), ("128", "2"))
    ]


def test_a_run_without_its_loss_yet_is_not_done(sweep: Sweep) -> None:
    """As a report sees it while the sweep works, or after a kill between training and measuring."""
    sweep.scheme("vanilla")
    place = next(n for n, one in enumerate(sweep.results) if (one.width, one.seed) == (96, 2))
    sweep.results[place] = replace(sweep.results[place], measurements=())
    table = sweep.page().partition("### Sizes at 3e+12 training FLOPs")[2].partition("##")[0]
    sizes = [line.split(" | ") for line in table.splitlines() if " x 4 | " in line]
    assert {line[1]: line[6] for line in sizes} == {
        f"{width} x 4": "2" if width == 96 else "3" for width in WIDTHS
    }


def test_suite_without_a_rate_that_worked_shows_what_was_lost(sweep: Sweep) -> None:
    for status in ("failed", "diverged"):
        for rate in PLAN["learning_rates"]:
            sweep.add(status, 64, BUDGETS[1], rate=rate, status=status)
    page = sweep.page()
    assert "No scheme has a learning rate yet" in page
    assert re.search(r"\| failed \| width 64, 3e\+12 FLOPs \| +\| - \| open \|", page)
    assert "0.0025: diverged, 0.005: diverged, 0.01: diverged" in page
