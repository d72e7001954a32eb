"""Small made-up items of standard tasks, with the fields of the hub, their YAML files, and requests."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.tasks._yaml_loader import load_yaml

from modbench.evaluate.tasks.names import find_task

WORDS = ["stone", "river", "green", "lamp", "table", "seven", "walk", "cold", "bright", "market"]


def write_tasks(folder: Path, items: int = 12) -> Path:
    """Write lambada_openai, arc_easy, piqa and wikitext into ``folder``, a folder of tasks; contexts and
    answers of many lengths."""
    rng = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))

    def choices(count: int) -> list[str]:
        return [f"{words(1, 6)} {number}" for number in range(count)]

    rows: dict[str, list[dict[str, Any]]] = {
        "lambada_openai": [{"text": words(3, 20)} for _ in range(items)],
        "arc_easy": [
            {
                "question": f"{words(3, 12)}?",
                "choices": {"text": choices(4), "label": list("ABCD")},
                "answerKey": "ABCD"[number % 4],
            }
            for number in range(items)
        ],
        "piqa": [
            {"goal": words(2, 9), "sol1": words(1, 6), "sol2": words(1, 6), "label": number % 2}
            for number in range(items)
        ],
        "wikitext": [
            {
                "page": f" = {words(1, 2)} = \n \n {words(20, 60)} \n = = {words(1, 2)} = = \n "
                f"{words(5, 9)} \n"
            }
            for _ in range(3)
        ],
    }
    folder.mkdir(exist_ok=True)
    for task, of_task in rows.items():
        write_task(folder, task, of_task)
    return folder


def write_task(folder: Path, task: str, rows: Sequence[Any], examples: Sequence[Any] = ()) -> None:
    """Write the task of lm-eval with this name on local items, ``rows`` and few-shot ``examples``."""
    own = find_task(task)
    assert isinstance(own, Path)
    stated = load_yaml(own, resolve_func=False)
    folder.mkdir(exist_ok=True)
    files = {}
    for split in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if name := stated.get(split):
            items = folder / f"{task}_{name}.jsonl"
            some = examples if split == "training_split" and examples else rows
            items.write_text("".join(json.dumps(row) + "\n" for row in some))
            files[name] = str(items.resolve())
    local = {"include": str(own), "dataset_path": "json", "dataset_name": None}
    local |= {"dataset_kwargs": {"data_files": files}}
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in local.items())
    (folder / f"{task}.yaml").write_text(text)


def rows_of(folder: Path, task: str) -> list[Any]:
    """The items that `write_task` wrote."""
    file = next(folder.glob(f"{task}_*.jsonl"))
    return [json.loads(line) for line in file.read_text().splitlines()]


def request(
    *arguments: object, kind: str = "loglikelihood", task: str = "made_up", item: int = 0
) -> Any:
    """A request of lm-eval, in the form that both of its versions take."""
    named = {"task_name": task, "doc_id": item, "metadata": (task, item, 1)}
    return Instance(kind, {}, arguments, idx=0, **named)  # type: ignore[arg-type]
