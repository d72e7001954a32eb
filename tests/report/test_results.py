"""From records to results: labels, settings that count, points of one trunk, and times of schemes."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_records import make_record, store, suite_record
from timings_made_up import times_of

from modbench.records.line import key_of
from modbench.records.record import AnyRecord, SuiteRecord
from modbench.records.result import Result, results_of
from modbench.records.store import read_suite
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.page import write_report

FIRST, SECOND = ("2026-01-03T00:00:00+00:00", "2026-01-04T00:00:00+00:00")


def read(folder: Path, results: Sequence[Result], *further: AnyRecord) -> list[Result]:
    return results_of(read_suite(store(folder, results, *further)))


def named(results: Sequence[Result], labels: Sequence[str], finished: str) -> SuiteRecord:
    """A suite with ``results`` under ``labels``."""
    pairs = zip(results, labels, strict=True)
    return suite_record([replace(one, label=label) for one, label in pairs], finished)


def test_labels_are_those_of_the_newest_suite_that_names_a_run(tmp_path: Path) -> None:
    runs = [make_record("mod"), make_record("vanilla")]
    early = named(runs, ("old", "gone"), FIRST)
    late = named(runs[:1], ("new",), SECOND)
    for number, suites in enumerate(([early, late], [late, early])):
        found = read(tmp_path / str(number), runs, *suites)
        assert {one.label: one.key for one in found} == {"new": runs[0].key, "gone": runs[1].key}


def test_a_run_that_no_suite_names_has_the_label_of_its_router(tmp_path: Path) -> None:
    kept, other = make_record("mine", router="mod"), make_record("vanilla")
    found = read(tmp_path, [kept, other], named([other], ["dense"], FIRST))
    assert [(one.label, one.suite["name"]) for one in found] == [("dense", "fake"), ("mod", "unnamed")]


def test_two_labels_of_one_run_are_two_rows_with_equal_figures(tmp_path: Path) -> None:
    run = make_record("mod", loss=4.5)
    found = read(tmp_path, [run], named([run, run], ["mod", "again"], FIRST))
    entries = Leaderboard.of(found, times=times_of(run)).entries
    assert [entry.scheme for entry in entries] == ["again", "mod"]
    for name in ("heldout_loss", "train_step_seconds", "peak_memory_bytes"):
        one, other = (entry.row.value(name) for entry in entries)
        assert one is not None
        assert one == other


def test_times_are_those_of_the_scheme_at_its_shape_and_batch() -> None:
    timed, seed = make_record("mod"), make_record("mod", seed=1)
    others = [
        make_record("options", router="mod", options={"every": 2}),
        make_record("width", router="mod", model={"width": 64}),
        make_record("batch", router="mod", train={"batch": 4}),
        make_record("edited", router="mod", plugin_sha256="cd" * 32),
    ]
    rate = make_record("rate", router="mod", train={"learning_rate": 0.1})
    board = Leaderboard.of([timed, seed, *others, rate], times=times_of(timed))
    measured = {e.row.label for e in board.entries if e.row.value("train_step_seconds") is not None}
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


@pytest.mark.parametrize("wanted", [1024, 65_536])
def test_of_measurements_with_other_settings_those_that_the_suite_wants_count(
    wanted: int, tmp_path: Path
) -> None:
    by_tokens = {
        tokens: make_record(loss=loss, measure={"heldout_tokens": tokens}, finished=finished)
        for tokens, loss, finished in ((1024, 4.0, FIRST), (65_536, 5.0, SECOND))
    }
    runs = list(by_tokens.values())
    suite = suite_record([by_tokens[wanted]])
    (result,) = read(tmp_path, [runs[0], replace(runs[1], record=runs[0].record)], suite)
    assert result.metrics["heldout_loss"] == by_tokens[wanted].metrics["heldout_loss"]
    assert result.settings["heldout"]["heldout_tokens"] == wanted


def test_a_lost_run_has_the_settings_that_the_suite_wants(tmp_path: Path) -> None:
    runs = [make_record("mod"), make_record("lost", status="diverged")]
    lost, mod = read(tmp_path, runs)
    assert lost.settings == mod.settings == runs[0].settings
    assert len(Leaderboard.of([lost, mod]).comparisons) == 1


def trapezoid(status: str = "ok") -> list[Result]:
    """The results of one run with a point at two budgets; the trunk leaves the first one's at 80."""
    one = make_record(loss=5.0)
    schedule = {"kind": "trapezoid", "budgets": [100, 200], "warmup": 0.1}
    schedule |= {"final_learning_rate": 0.1, "decay": 0.2}
    run = one.record.run | {"schedule": schedule}

    def point(flops: int, **decay: int) -> dict[str, Any]:
        return one.curve[0] | {"step": flops, "flops": flops} | decay

    curve = [point(40), point(80), point(90, decay=100), point(100, decay=100)]
    curve += [point(90), point(160), point(200, decay=200)]
    assert one.end is not None
    ends = [{**one.end, "budget": budget, "flops": budget} for budget in (100, 200)]
    lost = {"status": status, "error": "it broke", "ends": ends[:1]} if status != "ok" else {}
    changed: dict[str, Any] = {"run": run, "key": key_of(run), "curve": curve, "ends": ends, **lost}
    record = replace(one.record, **changed)
    results = []
    for budget, loss in ((100, 5.0), (200, 4.0)):
        on = {"run": record.key, "budget": budget}
        heldout, _ = make_record(loss=loss).measurements
        subject = heldout.measurement | on
        own = replace(heldout, measurement=subject, key=key_of(subject))
        results.append(replace(one, record=record, budget=budget, measurements=(own,)))
    return results


def test_a_trapezoid_has_a_result_at_each_budget_with_the_trunk_and_its_own_decay(
    tmp_path: Path,
) -> None:
    small, large = read(tmp_path, trapezoid())
    assert (small.budget, large.budget) == (100, 200)
    assert small.key == large.key
    assert [one.metrics["heldout_loss"] for one in (small, large)] == [5.0, 4.0]
    assert [one.metrics["train_flops"] for one in (small, large)] == [100, 200]
    assert [point["flops"] for point in small.curve] == [40, 80, 90, 100]
    assert [point["flops"] for point in large.curve] == [40, 80, 90, 160, 200]
    assert len(Leaderboard.of([small, large]).comparisons) == 2


def test_a_trapezoid_that_is_lost_keeps_the_budgets_that_it_reached(tmp_path: Path) -> None:
    reached, _ = trapezoid("diverged")
    small, large = read(tmp_path, [reached])
    assert (small.status, small.error) == ("ok", None)
    assert (large.status, large.error) == ("diverged", "it broke")
    assert "train_flops" not in large.metrics
