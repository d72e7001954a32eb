"""Small made-up files of standard tasks, with the fields of the hub, and requests."""

import json
import random
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

WORDS = ["stone", "river", "green", "lamp", "table", "seven", "walk", "cold", "bright", "market"]


def write_tasks(folder: Path, items: int = 12) -> Path:
    """Write lambada_openai, arc_easy and piqa into ``folder``, contexts and answers of many lengths."""
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
        text = "".join(json.dumps(row) + "\n" for row in of_task)
        (folder / f"{task}.jsonl").write_text(text)
    return folder


def request(
    *arguments: object, kind: str = "loglikelihood", task: str = "made_up", item: int = 0
) -> Any:
    """A request of lm-eval, in the form that both of its versions take."""
    named = {"task_name": task, "doc_id": item, "metadata": (task, item, 1)}
    return Instance(kind, {}, arguments, idx=0, **named)  # type: ignore[arg-type]
