"""Downstream tasks of a suite: names, settings, the record's section, files of a cell."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from local_tasks import write_task
from small_suite import modbench_says, write_suite

from modbench.data.cache_folder import cache_folder
from modbench.evaluate.tasks import names
from modbench.measure.config import MeasureConfig
from modbench.records.line import as_json
from modbench.records.result import Result, results_of
from modbench.records.store import read_suite
from modbench.report.write import write_report
from modbench.sweep.steps.downstream import FILES

TASKS = ["arc_easy", "lambada_openai"]
CHOICES = {"text": ["a cork", "a stone", "lead"], "label": ["A", "B", "C"]}
ITEM = {"question": "Which one floats?", "choices": CHOICES, "answerKey": "A"}


def keep_names(place: Path) -> None:
    """Put lm-eval's names of tasks, which take long to read, into the cache of suites in ``place``."""
    names._of_lm_eval.cache_clear()  # of a test with a cache folder of its own
    names.find_task("arc_easy")
    (place / "cache").mkdir(exist_ok=True)
    shutil.copy(cache_folder() / f"lm-eval-{version('lm_eval')}.json", place / "cache")


def write_items(folder: Path) -> None:
    keep_names(folder.parent)
    items = [{**ITEM, "answerKey": "ABC"[number % 3]} for number in range(6)]
    write_task(folder, "arc_easy", items, [ITEM])
    texts = [{"text": f"one line and another {number}"} for number in range(4)]
    write_task(folder, "lambada_openai", texts)


def measure(**settings: Any) -> dict[str, Any]:
    return {
        "steps": ["train", "heldout", "downstream"],
        "downstream": TASKS,
        "downstream_include": "data",
        "downstream_limit": 5,
        **settings,
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    """A suite of two schemes that was run, and its records, vanilla first."""
    place = tmp_path_factory.mktemp("suite")
    write_items(place / "data")
    train = {"sequence": 64, "batch": 1}
    tables = {"train": train, "model": {"layers": 2}, "sweep": {"budgets": [1e8]}}
    write_suite(place, "some", "vanilla", "mod", measure=measure(), **tables)
    code, said = modbench_says(place, "run", "suite.toml")
    assert code == 0, said
    folder = place / "my-results" / "some"
    return folder, results_of(read_suite(folder))[::-1]


def test_scores_of_tasks_by_name_are_in_the_record(ran: tuple[Path, list[Result]]) -> None:
    vanilla, mod = ran[1]
    for record in (vanilla, mod):
        assert record.downstream is not None
        assert set(record.downstream) == set(TASKS)
        arc = as_json(record.downstream["arc_easy"])
        assert (arc["items"], arc["few_shot"], arc["rule"]) == (5, 0, "causal")
        assert arc["part_of"] == "arc_easy"
        accuracy = arc["metrics"]["acc"]
        assert accuracy["chance"] == pytest.approx(1 / 3)
        assert 0 <= accuracy["value"] <= 1
        assert 0 <= accuracy["untrained"] <= 1
        assert accuracy["stderr"] is not None
        assert accuracy["higher_is_better"] is True
        assert arc["answer_bits_per_byte"]["value"] < arc["answer_bits_per_byte"]["untrained"]
        assert arc["answer_margin"]["stderr"] > 0
        perplexity = as_json(record.downstream["lambada_openai"].metrics["perplexity"])
        assert perplexity["value"] != perplexity["untrained"]
    dense, routed = (
        as_json(record.downstream["arc_easy"]) for record in (vanilla, mod) if record.downstream
    )
    assert routed["sha256"] == dense["sha256"]


def test_the_batch_shift_is_in_the_record(
    ran: tuple[Path, list[Result]],
) -> None:
    for record in ran[1]:
        assert record.downstream is not None
        arc = as_json(record.downstream["arc_easy"])
        shift = arc["batch_shift"]
        assert (shift["items"], shift["batches"]) == (5, [1, 7, 32])
        assert shift["nats"] < 1e-4
        assert shift["flipped"] == 0


def test_the_report_compares_the_schemes_from_the_records_alone(
    ran: tuple[Path, list[Result]], tmp_path: Path
) -> None:
    folder, _ = ran
    shutil.copytree(folder / "records", tmp_path / "some" / "records")
    write_report(tmp_path / "some")
    again = (tmp_path / "some" / "leaderboard.md").read_bytes()
    assert again == (folder / "leaderboard.md").read_bytes()
    text = again.decode()
    assert "| lambada_openai | acc |" in text


def test_lm_evals_own_files_lie_next_to_the_weights(
    ran: tuple[Path, list[Result]],
) -> None:
    folder, records = ran
    for own in (folder / "runs" / record.key for record in records):
        assert (own / "model.safetensors").is_file()
        files = (own / FILES).rglob("results_*.json")
        scored = [task for file in files for task in json.loads(file.read_text())["results"]]
        assert sorted(scored) == TASKS
        assert len(list((own / FILES).rglob("samples_*.jsonl"))) == 2


def test_few_shot_examples_are_recorded(tmp_path: Path) -> None:
    write_items(tmp_path / "data")
    settings = measure(downstream=["arc_easy"], downstream_fewshot=1)
    write_suite(tmp_path, "some", "vanilla", measure=settings, train={"sequence": 96, "batch": 1})
    code, said = modbench_says(tmp_path, "run", "suite.toml")
    assert code == 0, said
    (record,) = results_of(read_suite(tmp_path / "my-results/some"))
    assert record.downstream is not None
    assert record.downstream["arc_easy"].few_shot == 1
    assert record.settings["downstream"]["arc_easy"]["fewshot"] == 1


def test_a_task_is_measured_with_the_settings_that_alter_its_score() -> None:
    assert MeasureConfig().task("arc_easy") == {"task": "arc_easy"}
    stated = MeasureConfig(downstream_fewshot=0, downstream_limit=5)
    assert stated.task("piqa") == {"task": "piqa", "fewshot": 0, "limit": 5}
