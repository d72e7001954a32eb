"""Standard tasks from local files in place of the hub: the files looked for, and their formats.

A file ``TASK.jsonl`` has one JSON object per line: either the fields of the data set on the hub, or the
multiple-choice format of llm-foundry, ``{"query", "choices", "gold"}``, which is converted for the tasks
in `CONVERTED`. WikiText may be a text file of articles. Few-shot examples come from
``TASK_SPLIT.jsonl``, such as ``arc_easy_train.jsonl``.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.tasks._yaml_loader import load_yaml

from modbench.errors import UserError
from modbench.measure.downstream.task_files import files_of

if TYPE_CHECKING:
    pass

Row = dict[str, Any]

#: Further file names of tasks, as their sources name them.
ALIASES: dict[str, tuple[str, ...]] = {
    "lambada_openai": ("lambada_test.jsonl",),
    "wikitext": ("wikitext2_test.txt", "wiki.test.tokens", "wiki.test.raw"),
}
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_ARTICLE = re.compile(r"^ = [^=].*[^=] = \n", re.MULTILINE)


def _arc(row: Row) -> Row:
    letters = [chr(ord("A") + place) for place in range(len(row["choices"]))]
    return {
        "question": _question(row["query"]),
        "choices": {"text": row["choices"], "label": letters},
        "answerKey": letters[row["gold"]],
    }


def _piqa(row: Row) -> Row:
    first, second = row["choices"]
    return {"goal": _question(row["query"]), "sol1": first, "sol2": second, "label": row["gold"]}


def _question(query: str) -> str:
    """Remove the words that the task's own prompt adds."""
    return query.removeprefix("Question: ").removesuffix("Answer:").rstrip("\n")


def _check_answer(choices: Any, place: Any, name: str) -> None:
    """Raises ValueError: a choice is not text, or empty; ``place``, the field ``name``, is none of
    them."""
    if not isinstance(choices, list):
        raise ValueError("choices is not a list")
    for number, choice in enumerate(choices):
        _check_text(choice, f"choice {number}")
    if not isinstance(place, int) or not 0 <= place < len(choices):
        raise ValueError(f"{name} is {place!r}; it must be a number from 0 to {len(choices) - 1}")


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is {text!r}; it must be text that is not empty")


def _check_arc(row: Row) -> None:
    _, texts, labels = row["question"], row["choices"]["text"], row["choices"]["label"]
    if row["answerKey"] not in labels or len(texts) != len(labels):
        raise ValueError(f"answerKey is {row['answerKey']!r}; it must be one label, each of one choice")
    _check_answer(texts, labels.index(row["answerKey"]), "answerKey")


def _check_piqa(row: Row) -> None:
    _, *choices = row["goal"], row["sol1"], row["sol2"]
    _check_answer(choices, row["label"], "label")


def _check_lambada(row: Row) -> None:
    _check_text(row["text"].split(" ")[-1], "the word after the last space")


#: Raises ValueError, TypeError, AttributeError or KeyError: a row is no item of the task.
CHECKS: dict[str, Callable[[Row], None]] = {
    "arc_easy": _check_arc,
    "arc_challenge": _check_arc,
    "piqa": _check_piqa,
    "lambada_openai": _check_lambada,
    "wikitext": lambda row: _check_text(row["page"], "page"),
}
#: Tasks whose llm-foundry rows are converted to the fields of the data set on the hub.
CONVERTED: dict[str, Callable[[Row], Row]] = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "piqa": _piqa,
}


def wanted(task: str, folder: Path) -> list[Path]:
    """Return the files that are looked for in ``folder``, in order."""
    return [folder / name for name in (f"{task}.jsonl", *ALIASES.get(task, ()))]


@contextmanager
def localised(files: Mapping[str, Path], folder: Path | None) -> Iterator[Path]:
    """Context with a folder of YAML files for lm-eval's ``include_path``, one per entry of ``files``,
    and each includes that one. With ``folder``, tasks read their items there. Raises UserError: a
    task's file is missing."""
    with tempfile.TemporaryDirectory(prefix="modbench-tasks-") as made:
        for number, (task, path) in enumerate(files.items()):
            config: dict[str, Any] = {"include": str(path)}
            stated = load_yaml(path, resolve_func=False)
            if folder is not None and "dataset_path" in stated and "group" not in stated:
                config |= _from_files(task, stated, folder)
            # JSON is YAML, but for the tag of a function.
            text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())
            text = re.sub(r'"!function ([\w.]+)"', r"!function \1", text)
            Path(made, f"{number}.yaml").write_text(text, encoding="utf-8")
        yield Path(made)


def check_files(names: Iterable[str], folder: Path, few_shot: int | None) -> None:
    """Raises UserError: ``folder`` lacks the file of a task that ``names`` need, or that of its
    ``few_shot`` examples."""
    files = files_of(names)
    with localised(files, folder):
        pass
    for task, path in files.items():
        stated = load_yaml(path, resolve_func=False)
        split = stated.get("fewshot_split") or stated.get("training_split")
        evaluated = stated.get("test_split") or stated.get("validation_split")
        if not few_shot or stated.get("num_fewshot") == 0 or split in (None, evaluated):
            continue
        if "dataset_path" in stated and not (folder / f"{task}_{split}.jsonl").is_file():
            raise UserError(
                f"task '{task}' takes its {few_shot} examples from {task}_{split}.jsonl, which {folder} "
                "lacks; add it, or ask for 0 examples"
            )


def _from_files(task: str, stated: Mapping[str, Any], folder: Path) -> Row:
    """Return the fields that make ``task`` read ``folder``."""
    found = next((path for path in wanted(task, folder) if path.is_file()), None)
    if found is None:
        looked = " or ".join(path.name for path in wanted(task, folder))
        raise UserError(f"task '{task}' needs {looked} in --data-dir {folder}; see docs/evaluation.md")
    evaluated = stated.get("test_split") or stated.get("validation_split") or "test"
    splits = {evaluated: str(found)}
    named = [stated.get(name) for name in _SPLITS]
    named.append((stated.get("fewshot_config") or {}).get("split"))
    for split in dict.fromkeys(named):
        if split and split != evaluated:
            file = folder / f"{task}_{split}.jsonl"
            splits[split] = str(file) if file.is_file() else ""
    for name in filter(None, splits.values()):
        _items(task, Path(name))  # so that a malformed line is found before anything is scored
    return {
        "custom_dataset": "!function modbench.measure.downstream.local_data.read",
        "dataset_kwargs": {"local_task": task, "local_splits": splits},
    }


def read(local_task: str = "", local_splits: Mapping[str, str] | None = None, **_: Any) -> Any:
    """Return the data set of a task, by split; called by lm-eval. A split without a file is empty."""
    from datasets import Dataset

    data: dict[str, Dataset] = {}
    for split, file in (local_splits or {}).items():
        if file:
            data[split] = Dataset.from_list(_items(local_task, Path(file)))
    some = next(iter(data.values()))
    return data | {split: some.select([]) for split, file in (local_splits or {}).items() if not file}


def _items(task: str, file: Path) -> list[Row]:
    """Return the rows of ``file``. Raises UserError: it has none, or a line is no item of ``task``."""
    rows = list(_rows(task, file))
    if not rows:
        raise UserError(f"{file} has no items; it must have one per line")
    return rows


def _rows(task: str, file: Path) -> Iterator[Row]:
    if file.suffix != ".jsonl":
        text = file.read_text(encoding="utf-8")
        starts = [match.start() for match in _ARTICLE.finditer(text)] or [0]
        ends = [*starts[1:], len(text)]
        for start, end in zip(starts, ends, strict=True):
            yield {"page": text[start:end]}
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(task, line, f"{file}, line {number}")


def _row(task: str, line: str, where: str) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("not an object")
        if {"query", "choices", "gold"} <= row.keys() and task in CONVERTED:
            _check_answer(row["choices"], row["gold"], "gold")
            row = CONVERTED[task](row)
        if task in CHECKS:
            CHECKS[task](row)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        fault = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{where} is no item of task '{task}' ({fault}); see docs/evaluation.md"
        ) from error
    return row
