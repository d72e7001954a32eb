"""Local items: formats without a YAML file, a user's own tasks, tasks that fail, groups that lack
files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from local_tasks import write_tasks
from pydantic import TypeAdapter
from test_evaluation import Smooth, model

from modbench.errors import UserError
from modbench.evaluate.downstream import Evaluation, evaluate
from modbench.evaluate.downstream.table import as_table, section
from modbench.evaluate.downstream.validity import BatchShift
from modbench.measure.config import MeasureConfig
from modbench.records.line import check
from modbench.records.sections import TaskScores

ARC = {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "A"}
PIQA = {"goal": "a", "sol1": "x", "sol2": "y", "label": 0}
FOUNDRY = {"query": "Which?", "choices": ["this", "that"], "gold": 1}
PAIR = {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."}
CONTINUATION = {"context": "The capital of France is", "continuation": "Paris"}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "data")


def scored(name: str, folder: Path | None = None, **options: object) -> Evaluation:
    [found] = evaluate(model(), [name], data_dir=folder, **options)  # type: ignore[arg-type]
    return found


def names(found: Evaluation) -> list[str]:
    return [score.task for score in found.scores]


def write(folder: Path, task: str, *rows: object) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{task}.jsonl"
    file.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows))
    return file


@pytest.mark.parametrize(
    ("task", "rows", "said"),
    [
        ("piqa", [PIQA, "{"], "piqa"),
        ("piqa", [FOUNDRY, FOUNDRY], "goal"),
        ("my_quiz", ["{"], "my_quiz.jsonl, line 1"),
    ],
)
def test_a_line_that_is_no_item_is_one_sentence_with_the_name_of_the_task(tmp_path, task, rows, said):
    file = write(tmp_path / "data", task, *rows)
    with pytest.raises(UserError, match=said) as caught:
        scored(task, file.parent)
    assert task in str(caught.value)


def test_an_error_of_the_model_is_not_one_of_the_task(tasks, monkeypatch):
    def breaks(self, *_, **__):
        raise KeyError("a bug of ours")

    monkeypatch.setattr(Smooth, "forward", breaks)
    with pytest.raises(KeyError, match="a bug of ours"):
        scored("piqa", tasks)


def test_files_of_three_formats_are_tasks_of_their_own(tmp_path):
    folder = tmp_path / "data"
    write(folder, "my_quiz", FOUNDRY, {**FOUNDRY, "query": "42"})
    write(folder, "my_quiz_train", FOUNDRY)
    write(folder, "my_pairs", PAIR)
    write(folder, "my_text", CONTINUATION)
    quiz = scored("my_quiz", folder, num_fewshot=1)
    asked = [one.args for one in quiz.tasks["my_quiz"].instances]
    assert asked[:2] == [("Which? that\n\nWhich?", " this"), ("Which? that\n\nWhich?", " that")]
    assert asked[2][0].endswith("\n\n42")
    assert quiz.score("my_quiz").chance == {"acc": 0.5, "acc_norm": 0.5}
    assert quiz.score("my_quiz").few_shot == 1
    pairs = scored("my_pairs", folder)
    assert [one.args for one in pairs.tasks["my_pairs"].instances] == [
        ("", " The cats sleep."),
        ("", " The cats sleeps."),
    ]
    text = scored("my_text", folder)
    assert [one.args for one in text.tasks["my_text"].instances] == [
        ("The capital of France is", " Paris")
    ]
    assert set(text.score("my_text").metrics) == {"acc", "perplexity"}


OWN = {
    "task": "mine",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "query",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
}


def own_tasks(folder: Path, **fields: object) -> Path:
    """A user's task with its items, a group of it and piqa, and a tag."""
    items = write(folder.parent, "items", FOUNDRY, FOUNDRY, FOUNDRY)
    folder.mkdir()
    kwargs = {"data_files": {"test": str(items)}}
    task = {**OWN, "dataset_kwargs": kwargs, "tag": "of_mine", **fields}
    text = re.sub(r'"(!function [^"]+)"', r"\1", json.dumps(task))
    (folder / "some.yaml").write_text(text)
    aggregates = [{"metric": "acc", "weight_by_size": True}]
    group = {"group": "both", "task": ["mine", "arc_easy"], "aggregate_metric_list": aggregates}
    (folder / "group.yaml").write_text(json.dumps(group, indent=2))
    return folder


def test_a_user_s_own_yaml_tasks_are_names_too(tmp_path):
    include = own_tasks(tmp_path / "mine")
    assert scored("mine", include=include).score("mine").items == 3
    assert names(scored("of_mine", include=include)) == ["mine"]
    measure = MeasureConfig(downstream=("mine",), downstream_include=str(include))
    assert measure.task("mine") == {"task": "mine", "include": str(include)}
    with pytest.raises(UserError, match="task 'nine' is not known; did you mean 'mine'"):
        MeasureConfig(downstream=("nine",), downstream_include=str(include))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"output_type": "guess"}, "guess"),
        ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, "gone.jsonl"),
        ({"process_docs": "!function ends.f"}, "SystemExit"),
    ],
)
def test_a_mistake_in_a_user_s_task_is_one_sentence(tmp_path, fields, said):
    include = own_tasks(tmp_path / "mine", **fields)
    (include / "ends.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(UserError, match=f"task 'mine' .*({said})"):
        scored("mine", include=include)


def test_a_group_has_a_chance_level_and_the_few_shot_number_of_its_tasks(tasks, tmp_path):
    found = scored("both", tasks, include=own_tasks(tmp_path / "mine"))
    # 3 items with two choices, 12 with four.
    assert found.score("both").chance == {"acc": pytest.approx((3 / 2 + 12 / 4) / 15)}
    assert found.score("both").items == 15
    assert found.missing == ()


def test_a_group_is_scored_on_the_members_whose_files_are_there(tasks, tmp_path):
    include = own_tasks(tmp_path / "mine")
    (tasks / "arc_easy.jsonl").unlink()
    found = scored("both", tasks, include=include)
    assert names(found) == ["both", "mine"]
    assert found.missing == found.score("both").missing == ("arc_easy",)
    assert "both (partial)" in as_table([found])
    write(tasks, "arc_challenge", ARC)
    assert names(scored("ai2_arc", tasks)) == ["arc_challenge"]
    write(tasks, "mmlu_anatomy", {"question": "a", "choices": list("bcde"), "answer": 1})
    mmlu = scored("mmlu", tasks)
    assert names(mmlu) == ["mmlu", "mmlu_stem", "mmlu_anatomy"]
    assert (len(mmlu.missing), len(mmlu.score("mmlu_stem").missing)) == (56, 18)


def test_the_script_converts_what_others_publish(tmp_path):
    """Its items are those of the task of lm-eval, and its articles those of WikiText."""
    write(tmp_path / "in", "arc_easy", {**FOUNDRY, "query": "Question: Which?"})
    write(tmp_path / "in", "piqa", {**FOUNDRY, "query": "Question: Which?\n"})
    write(tmp_path / "in", "lambada_test", {"text": "a stone é"})
    pages = [" = A = \n \n text \n = = Part = = \n more \n", " = B = \n \n text \n"]
    (tmp_path / "in" / "wikitext2_test.txt").write_text(" \n" + "".join(pages))
    script = Path(__file__).parents[2] / "examples" / "local_items.py"
    words = [str(file) for file in (tmp_path / "in").iterdir()]
    subprocess.run([sys.executable, script, *words, "--out", tmp_path / "out"], check=True)
    asked = {
        name: [one.args for one in scored(name, tmp_path / "out").tasks[name].instances]
        for name in ("arc_easy", "piqa", "lambada_openai", "wikitext")
    }
    prompt = "Question: Which?\nAnswer:"
    assert asked["arc_easy"] == asked["piqa"] == [(prompt, " this"), (prompt, " that")]
    assert asked["lambada_openai"] == [("a stone", " é")]
    rows = [json.loads(one) for one in (tmp_path / "out/wikitext.jsonl").read_text().splitlines()]
    assert [row["page"] for row in rows] == pages


def test_a_partial_group_is_marked_in_the_record(tasks, tmp_path):
    include = own_tasks(tmp_path / "mine")
    (tasks / "arc_easy.jsonl").unlink()
    found = section(scored("both", tasks, include=include), BatchShift(nats=0.0, flipped=0, items=1))
    check("downstream", found, TypeAdapter(dict[str, TaskScores]))
    assert found["both"]["missing"] == ["arc_easy"]
    assert sum("missing" in row for row in found.values()) == 1
