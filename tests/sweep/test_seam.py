"""Changes that cannot alter the weights train nothing: labels, tasks, intervals, other measurements."""

import csv
from pathlib import Path
from typing import Any

import pytest
from local_tasks import write_task
from small_suite import modbench_says, write_suite

from modbench.records.result import results_of
from modbench.records.store import read_suite

TABLES: dict[str, Any] = {
    "model": {"layers": 2},
    "train": {"sequence": 64, "batch": 1},
    "sweep": {"budgets": [1e8]},
}
MEASURE = {"steps": ["train", "heldout"], "heldout_tokens": 64, "curve_tokens": 64}
ITEM = {"question": "Which one floats?", "choices": {"text": ["a cork", "lead"], "label": ["A", "B"]}}


def run(place: Path, *words: str) -> str:
    code, out = modbench_says(place, "run", "suite.toml", *words)
    assert code == 0, out
    return out


def rows(place: Path) -> dict[str, dict[str, str]]:
    with (place / "my-results" / "seam" / "leaderboard.csv").open() as table:
        return {row["label"]: row for row in csv.DictReader(table)}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder in which a suite of two schemes was run."""
    items = [ITEM | {"answerKey": "AB"[number % 2]} for number in range(4)]
    write_task(tmp_path / "data", "arc_easy", items)
    write_suite(tmp_path, "seam", "vanilla", "mod", measure=MEASURE, **TABLES)
    run(tmp_path)
    return tmp_path


def test_labels_intervals_tasks_and_other_measurements_train_nothing(place: Path) -> None:
    folder = place / "my-results" / "seam"
    before = {result.key: result for result in results_of(read_suite(folder))}

    # Another label, and other intervals of checkpoints and evaluations.
    train = TABLES["train"] | {"evaluations": 3, "checkpoint_seconds": 1.0}
    write_suite(place, "seam", "vanilla", measure=MEASURE, **TABLES | {"train": train})
    with (place / "suite.toml").open("a") as suite:
        suite.write('[[schemes]]\nrouter = "mod"\nlabel = "another name"\n')
    assert "2 of 2 runs done" in run(place)
    assert set(rows(place)) == {"vanilla", "another name"}

    # Another amount of held-out text, and a task more.
    measure = MEASURE | {
        "steps": ["train", "heldout", "downstream"],
        "heldout_tokens": 256,
        "downstream": ["arc_easy"],
        "downstream_include": "data",
    }
    write_suite(place, "seam", "vanilla", "mod", measure=measure, **TABLES)
    out = run(place)
    assert "vanilla: heldout" in out
    assert "mod: downstream" in out
    assert ": train" not in out
    records = read_suite(folder)
    assert len(records.runs) == 2
    assert len(records.measurements) == 2 * 3
    for result in results_of(records):
        assert result.metrics["heldout_loss"] != before[result.key].metrics["heldout_loss"]
        assert result.downstream["arc_easy"].items == 4
    assert float(rows(place)["mod"]["arc_easy:acc"]) <= 1

    # The first suite again: all of it is recorded.
    write_suite(place, "seam", "vanilla", "mod", measure=MEASURE, **TABLES)
    assert "2 of 2 runs done" in run(place)
    for result in results_of(read_suite(folder)):
        assert result.metrics["heldout_loss"] == before[result.key].metrics["heldout_loss"]


def test_old_runs_are_scored_on_a_task_by_one_command(place: Path) -> None:
    with (place / "suite.toml").open() as suite:
        text = suite.read().replace("[measure]", '[measure]\ndownstream_include = "data"')
    (place / "suite.toml").write_text(text)
    out = run(place, "--measure", "arc_easy")
    assert ": train" not in out
    records = read_suite(place / "my-results" / "seam")
    assert len(records.runs) == 2
    assert {len(result.downstream) for result in results_of(records)} == {1}


def test_where_the_weights_are_gone_it_says_so_before_it_trains_again(place: Path) -> None:
    for weights in (place / "my-results" / "seam" / "runs").glob("*/model.safetensors"):
        weights.unlink()
    write_suite(place, "seam", "vanilla", "mod", measure=MEASURE | {"heldout_tokens": "all"}, **TABLES)
    out = run(place, "--only", "mod", "--measure", "modbench_bits_per_byte")
    assert "1 run without stored weights not measured: mod" in " ".join(out.split())
    out = " ".join(run(place, "--only", "mod").split())
    said = "mod: heldout is to be measured and its weights are not here; it is trained again"
    assert said in out
    assert out.index(said) < out.index("mod: train")
    records = read_suite(place / "my-results" / "seam")
    losses = {record.key: record.ends for record in records.runs}
    assert len(records.runs) == 3
    assert len(losses) == 2  # trained again to the same result


def test_weights_stay_as_the_suite_says(tmp_path: Path) -> None:
    kept = {}
    for keep in ("none", "end"):
        name = f"keep-{keep}"
        write_suite(tmp_path, name, "vanilla", measure=MEASURE, keep={"weights": keep}, **TABLES)
        run(tmp_path)
        folder = tmp_path / "my-results" / name / "runs"
        kept[keep] = sorted({path.parent.name for path in folder.rglob("*.safetensors")})
    assert (len(kept["none"]), len(kept["end"])) == (0, 1)
