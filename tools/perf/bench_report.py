"""Reports: of 1,000 records with all figures, in CSV of many records, of the committed quick suite; the
page in a browser; commands that compute nothing."""

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import made_up_records as fakes
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach

from modbench.report.html.index import PAGE
from modbench.report.write import write_report

QUICK = Path(__file__).parents[2] / "results" / "quick"
ROWS, MANY, OPENED = 500, 10_000, 9


def stored(folder: Path, runs: int) -> Path:
    """A suite of ``runs`` runs: two seeds per row, and two records per run."""
    made = [
        fakes.make_record(
            f"token_choice:{row}",
            router="token_choice",
            options={"top_k": row},
            loss=4.5 + row / runs + seed / 700,
            cost=0.5 + row / runs,
            seed=seed,
        )
        for row in range(runs // 2)
        for seed in (0, 1)
    ]
    return fakes.store(folder, made)


def seconds_of(benchmark: BenchmarkFixture, *words: str) -> float:
    """Processor time, in seconds, of the command modbench ``words``."""
    return float(benchmark.pedantic(_seconds_of, args=words, rounds=1, iterations=1))


def _seconds_of(*words: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-m", "modbench", *words], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def test_report_with_all_figures(tmp_path: Path, benchmark: BenchmarkFixture, reach: Reach) -> None:
    folder = stored(tmp_path / "fake", ROWS)
    seconds = seconds_of(benchmark, "report", "fake", "--results", str(tmp_path), "--html")
    reach("report of 1,000 records with all figures and its page, processor time", seconds, 10, "s")
    assert len(list(folder.glob("*.svg"))) == 2


def test_report_in_csv(tmp_path: Path, benchmark: BenchmarkFixture, reach: Reach) -> None:
    stored(tmp_path / "fake", MANY // 2)
    seconds = seconds_of(benchmark, "report", "fake", "--results", str(tmp_path), "--csv")
    reach.shown("report --csv, processor time per 10,000 records", seconds, "s")


def test_report_of_quick(tmp_path: Path, benchmark: BenchmarkFixture, reach: Reach) -> None:
    shutil.copytree(QUICK, tmp_path / "quick")
    words = ("report", "quick", "--results", str(tmp_path))
    reach.shown(
        "report of quick with its page, processor time", seconds_of(benchmark, *words, "--html"), "s"
    )
    reach.shown("report of quick in CSV, processor time", _seconds_of(*words, "--csv"), "s")


@pytest.mark.parametrize("words", [("--help",), ("list",)])
def test_commands_that_compute_nothing(
    words: tuple[str, ...], benchmark: BenchmarkFixture, reach: Reach
) -> None:
    seconds = [seconds_of(benchmark, *words), *(_seconds_of(*words) for _ in range(4))]
    reach(f"modbench {' '.join(words)}, processor time", seconds, 0.3, "s")


def test_opening_a_page(tmp_path: Path, benchmark: BenchmarkFixture, reach: Reach) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    folder = stored(tmp_path / "fake", 2 * ROWS)
    benchmark.pedantic(write_report, args=(folder,), kwargs={"html": True}, rounds=1, iterations=1)
    file = folder / PAGE
    reach(f"page of {ROWS} rows", file.stat().st_size / 1e6, 2.1, "MB")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = []
        for _ in range(OPENED):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(file.as_uri())
            at = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
            opened.append(page.evaluate(at))
            page.close()
        browser.close()
    reach(f"DOMContentLoaded of a page of {ROWS} rows", statistics.median(opened), 300, "ms")
    reach.shown("the same, fastest", min(opened), "ms")
