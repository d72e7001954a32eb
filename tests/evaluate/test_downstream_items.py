"""Local items: a user's own tasks, those of others, and tasks that fail."""

import json
import re
from pathlib import Path

import pytest
from local_tasks import write_task, write_tasks
from test_evaluation import Smooth, model

from modbench.errors import UserError
from modbench.evaluate.downstream import Evaluation, evaluate
from modbench.measure.config import MeasureConfig

PIQA = {"goal": "a", "sol1": "x", "sol2": "y", "label": 0}
DOCS = Path(__file__).parents[2] / "docs"
FOUNDRY = {"query": "Which?", "choices": ["this", "that"], "gold": 1}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "data")


def scored(name: str, folder: Path | None = None, **options: object) -> Evaluation:
    [found] = evaluate(model(), [name], include=folder, **options)  # type: ignore[arg-type]
    return found


def names(found: Evaluation) -> list[str]:
    return [score.task for score in found.scores]


def write(folder: Path, task: str, *rows: object) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / f"{task}.jsonl"
    file.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows))
    return file


@pytest.mark.parametrize(
    ("task", "row"),
    [
        *((task, FOUNDRY) for task in ("arc_easy", "boolq", "commonsense_qa", "copa", "piqa")),
        ("lambada_openai", {"context": "The capital of France is", "continuation": "Paris"}),
        ("winogrande", {"context_options": ["a", "b"], "continuation": "c", "gold": 1}),
        ("gsm8k", {"context": "1 + 1", "answer": "2"}),
    ],
)
def test_items_of_another_format_are_one_sentence_with_the_task_and_what_reads_them(task, row, tmp_path):
    write_task(tmp_path / "tasks", task, [row, row])
    with pytest.raises(UserError, match=rf"task '{task}' can't be scored .*: .*docs evaluation\)$"):
        scored(task, tmp_path / "tasks")


def test_an_error_of_the_model_is_not_one_of_the_task(tasks, monkeypatch):
    def breaks(self, *_, **__):
        raise KeyError("a bug of ours")

    monkeypatch.setattr(Smooth, "forward", breaks)
    with pytest.raises(KeyError, match="a bug of ours"):
        scored("piqa", tasks)


def test_changed_items_are_read_again(tasks):
    assert scored("piqa", tasks).score("piqa").items == 12
    write_task(tasks, "piqa", [PIQA])
    assert scored("piqa", tasks).score("piqa").items == 1


@pytest.mark.parametrize(
    ("page", "rows", "asked"),
    [
        ("choices", [FOUNDRY], [("Which?", " this"), ("Which?", " that")]),
        ("continuation", [{"context": "The capital of France is", "continuation": "Paris"}], None),
    ],
)
def test_local_data_files_of_llm_foundry_run_through_the_yaml_of_the_page(
    page, rows, asked, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "evaluation.md").read_text(), re.DOTALL)
    (text,) = (block for block in blocks if f"# {page}" in block)
    (file,) = re.findall(r"test: (\S+)", text)
    (name,) = re.findall(r"task: (\S+)", text)
    write(Path(file).parent, Path(file).stem, *rows)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "one.yaml").write_text(text)
    found = scored(name, tmp_path / "tasks")
    expected = asked or [("The capital of France is", " Paris")]
    assert [one.args for one in found.tasks[name].instances] == expected
    assert "acc" in found.score(name).metrics


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
    write_tasks(folder)
    return folder


def test_a_user_s_own_yaml_tasks_are_names_too(tmp_path):
    include = own_tasks(tmp_path / "mine")
    assert scored("mine", include).score("mine").items == 3
    assert names(scored("of_mine", include)) == ["mine"]
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
        scored("mine", include)


def test_a_group_has_a_chance_level_and_the_few_shot_number_of_its_tasks(tmp_path):
    found = scored("both", own_tasks(tmp_path / "mine"))
    # 3 items with two choices, 12 with four.
    assert found.score("both").chance == {"acc": pytest.approx((3 / 2 + 12 / 4) / 15)}
    assert found.score("both").items == 15
