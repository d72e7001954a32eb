"""From records to results: labels, settings that count, and times of schemes."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_up_records import make_record, store
from timings_made_up import times_of

from modbench.records.record import AnyRecord
from modbench.records.result import Result, results_of
from modbench.records.store import read_suite
from modbench.report.suite import suite_of
from modbench.report.write import write_report

FIRST, SECOND = ("2026-01-03T00:00:00+00:00", "2026-01-04T00:00:00+00:00")


def read(folder: Path, results: Sequence[Result], *further: AnyRecord) -> list[Result]:
    return results_of(read_suite(store(folder, results, *further)))


def test_times_are_those_of_the_scheme_at_its_shape_and_batch() -> None:
    timed, seed = make_record("mod"), make_record("mod", seed=1)
    others = [
        make_record("options", router="mod", options={"every": 2}),
        make_record("width", router="mod", model={"width": 64}),
        make_record("batch", router="mod", train={"batch": 4}),
        make_record("edited", router="mod", plugin_sha256="cd" * 32),
    ]
    rate = make_record("rate", router="mod", train={"learning_rate": 0.1})
    board = suite_of([timed, seed, *others, rate], times=times_of(timed))
    measured = {row["row"] for row in board.rows if row["train_step_seconds_median"] is not None}
    assert measured == {"mod", "rate"}


def test_columns_of_time_are_of_the_newest_session(tmp_path: Path) -> None:
    run = make_record("mod")
    late = {"started": FIRST, "finished": SECOND}
    old = times_of(run, seconds=(0.2,) * 4, session="session-1").timings
    new = times_of(run, session="session-2", **late).timings
    write_report(store(tmp_path, [run], *new, *old))
    (row,) = csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text()))
    assert float(row["train_step_seconds_median"]) == pytest.approx(0.1)
    assert (row["train_step_seconds_n"], row["peak_memory_bytes_median"]) == ("4", "80000000")
    assert "Other sessions of this suite: 1" in (tmp_path / "timings.md").read_text()


def test_a_lost_run_has_the_settings_that_the_suite_wants(tmp_path: Path) -> None:
    runs = [make_record("mod"), make_record("lost", status="diverged")]
    lost, mod = read(tmp_path, runs)
    assert lost.settings == mod.settings == runs[0].settings
    assert len(suite_of([lost, mod]).comparisons) == 1
