"""Routing over the course of training in a suite: recorded at points of each run and at its end,
whatever stops it, and predicted once the dense run of its shape and seed is there."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_suite import finished, modbench_says, write_suite

from modbench.errors import UserError
from modbench.measure.config import MeasureConfig
from modbench.records.record import MeasurementRecord
from modbench.records.result import Result, results_of
from modbench.records.store import read_suite
from modbench.sweep.steps import training
from modbench.train.loop import _Run

POINTS = [0, 0.3, 0.6, 1]
#: A router with a series of its own.
PLUGIN = """
from dataclasses import dataclass
from modbench import DepthRouter, register_router

@register_router("author")
@dataclass(frozen=True, kw_only=True)
class Author(DepthRouter):
    def gate(self, scores_BT):
        return scores_BT.sigmoid()

    def selected(self, scores_BT, tokens):
        tokens.record("mean_score", scores_BT.mean())
        return tokens.positions % 4 == 0
"""


def suite(place: Path, *routers: str, points: list[float] | None = POINTS, **train: Any) -> None:
    measure = {"steps": ["train"], "routing_points": points}
    train = {"sequence": 16, "batch": 4, **train}
    write_suite(
        place,
        "points",
        *routers,
        measure=measure,
        train=train,
        model={"layers": 2},
        sweep={"budgets": [4e7]},
    )


def run(place: Path, results: str, *words: str, code: int = 0) -> str:
    ended, out = modbench_says(place, "run", "suite.toml", "--results", results, *words)
    assert ended == code, out
    return out


def by_row(place: Path, results: str) -> dict[str, Result]:
    return {result.label: result for result in results_of(read_suite(place / results / "points"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("points")
    suite(place, "mod", "vanilla", "token_choice")
    run(place, "whole")
    return place


def test_each_run_has_its_points_and_rules_wait_for_the_dense_run(whole: Path) -> None:
    rows = by_row(whole, "whole")
    for name, row in rows.items():
        assert row.traces
        assert [point.share for point in row.traces.points] == POINTS
        assert bool(row.rules) == (name != "vanilla")
    assert rows["vanilla"].traces
    assert len(rows["vanilla"].traces.changes) == 2
    for name in ("mod", "token_choice"):
        rules = rows[name].rules
        assert rules
        assert {*rules.losses} >= {"own", "random", "dense_loss", "dense_change"}
    assert "0 of" not in run(whole, "whole")  # nothing is left


def test_the_option_changes_neither_keys_nor_weights(whole: Path) -> None:
    suite(whole, "mod", "vanilla", "token_choice", points=None)
    run(whole, "without")
    runs = {key: of for key, of in finished(whole / "whole" / "points").items() if isinstance(of, tuple)}
    assert finished(whole / "without" / "points") == runs
    wanted = read_suite(whole / "without" / "points").suites[0].suite.wanted
    assert wanted == {}
    suite(whole, "mod", "vanilla", "token_choice")


@pytest.mark.parametrize("ends_at", [1, 7])
def test_a_run_that_was_ended_records_the_same(
    whole: Path, ends_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite(whole, "mod", "vanilla", "token_choice", checkpoint_seconds=1e-9)
    taken: list[int] = []
    traced: list[float] = []
    take_step, point = _Run.take_step, training.traced_point

    def step(self: _Run, *args: Any) -> Any:
        taken.append(self.step)
        if taken.count(ends_at) == 1 and self.step == ends_at:
            raise RuntimeError("ended")
        return take_step(self, *args)

    def trace(model: Any, windows_WT: Any, share: float) -> Any:
        traced.append(share)
        return point(model, windows_WT, share)

    monkeypatch.setattr(_Run, "take_step", step)
    monkeypatch.setattr(training, "traced_point", trace)
    results = f"ended{ends_at}"
    run(whole, results, "--only", "mod", code=1)
    assert traced
    run(whole, results)
    assert traced.count(0) == 3  # once per run: a run that resumes has it
    assert finished(whole / results / "points") == finished(whole / "whole" / "points")


def test_points_that_are_not_here_are_trained_again(whole: Path) -> None:
    suite(whole, "mod", points=None)
    run(whole, "later")
    suite(whole, "mod")
    assert "trained again" in run(whole, "later")
    rows = by_row(whole, "later")
    assert rows["mod"].traces
    assert len(rows["mod"].traces.points) == 4
    assert rows["mod"].rules
    assert rows["mod"].rules.layers[0].auc.keys() == {"position", "id", "ids"}


def test_an_authors_series_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "author.py").write_text(PLUGIN)
    suite(tmp_path, "author", sequence=64)
    run(tmp_path, "results", "--plugin", "author.py")
    row = by_row(tmp_path, "results")["author"]
    assert row.traces
    assert row.rules
    assert all("mean_score" in point.series for point in row.traces.points)
    assert len({point.series["mean_score"] for point in row.traces.points}) > 1
    assert row.rules.layers[0].auc["position"] == 1


@pytest.mark.parametrize("points", [(0.0, 0.5), (0.5, 0.1, 1.0), (0.5, 0.5, 1.0), (1.0, 1.5)])
def test_points_rise_to_the_end(points: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="routing_points"):
        MeasureConfig(routing_points=points)


def test_weights_must_stay(tmp_path: Path) -> None:
    suite(tmp_path, "mod")
    text = (tmp_path / "suite.toml").read_text()
    (tmp_path / "suite.toml").write_text(f'{text}[keep]\nweights = "none"\n')
    assert "routing_points" in run(tmp_path, "results", code=2)


def test_the_report_and_the_command_show_what_is_recorded(whole: Path) -> None:
    folder = whole / "whole" / "points"
    assert "## Routing over training" in (folder / "leaderboard.md").read_text()
    course = pd.read_csv(folder / "routing.csv")
    assert {*course["row"]} == {"mod", "token_choice"}
    traces = by_row(whole, "whole")["mod"].traces
    assert traces
    words = ["--results", "whole", "--out", str(whole / "t.parquet")]
    code, out = modbench_says(whole, "traces", "points/mod", *words)
    assert code == 0, out
    frame = pd.read_parquet(whole / "t.parquet")
    assert len(frame) == traces.windows * traces.sequence  # one routed layer
    assert frame["selected"].sum() == traces.arrays().end[1, "depth"].chosen_NE.sum()
    assert frame["loss"].notna().all()
    code, out = modbench_says(whole, "traces", "points/mod", *words, "--share", "0.3")
    assert (code, pd.read_parquet(whole / "t.parquet")["gate"].notna().any()) == (0, False)
    for wrong in (["points/vanilla"], ["points/mod", "--share", "0.5"]):
        code, out = modbench_says(whole, "traces", *wrong, *words)
        assert (code, out.count("\n")) == (2, 1)


def test_records_hold_arrays(whole: Path) -> None:
    records = read_suite(whole / "whole" / "points").measurements
    kinds = [of.measurement.measures for of in records if isinstance(of, MeasurementRecord)]
    assert sorted(kinds) == [*["routing"] * 3, *["rules"] * 2]
