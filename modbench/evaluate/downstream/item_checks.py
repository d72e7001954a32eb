"""Checks the items of local files by reading them as the task does, so that a line that is no item of
the task is named before anything is scored."""

import json
import re
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from lm_eval.tasks.manager import TaskManager

from modbench.errors import UserError
from modbench.evaluate.downstream.formats import FIELDS
from modbench.evaluate.downstream.json_lines import Row, rows_of
from modbench.evaluate.downstream.local_data import Sources, write_yaml

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")
#: What lm-eval 0.4 and 0.5 say of a task whose own function keeps no document.
_NO_ITEM = re.compile("out of bounds for size 0|must have validation or test docs")
#: Tasks whose files of llm-foundry examples/local_items.py converts.
_CONVERTED = ("arc_easy", "arc_challenge", "piqa")
_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


#: Files that were checked by this process, which may score several models; see `_Check.key`.
_CHECKED: set[tuple[Any, ...]] = set()


def check_sources(sources: Sources) -> None:
    """Check the local files of all tasks of ``sources``. Raises UserError: all files of a group are
    missing, a file can't be read, or a line is no item of its task."""
    sources.check()
    for task in sources.files:
        if task in sources.missing:
            continue
        listed = sources.data_files(task).values()
        files = [
            file
            for listed_file in listed
            for file in ([listed_file] if isinstance(listed_file, str) else listed_file)
        ]
        for file in dict.fromkeys(files):
            path = Path(file)
            if path.suffix == ".jsonl" and (path.is_file() or not re.search(r"[*?\[]|://", file)):
                check = _Check(sources, task, path)
                if check.key not in _CHECKED:
                    check.run()
                    _CHECKED.add(check.key)


class _Check:
    """The items of one file, read by one task."""

    def __init__(self, sources: Sources, task: str, file: Path) -> None:
        self.sources = sources
        self.task = task
        self.file = file

    @property
    def key(self) -> tuple[Any, ...]:
        """The task, the file and its state."""
        state = self.file.stat() if self.file.is_file() else None
        yaml = self.sources.files[self.task]
        return yaml, self.task, self.file.absolute(), state and (state.st_mtime_ns, state.st_size)

    def run(self) -> None:
        """Raises UserError: a line is no item of the task."""
        lines = list(rows_of(self.file))
        rows = [row for _, row in lines]
        self._check_kinds(lines)
        if self._fault(rows) is None:
            return
        # The first line at which reading all lines up to it fails.
        ends = range(1, len(rows))
        first = 1 if self._fault(rows[:1]) else bisect_left(ends, True, key=self._fails_at(rows)) + 1
        number, row = lines[first - 1]
        raise self._refusal(number, row, self._lacking(row) or str(self._fault(rows[:first])))

    def _fails_at(self, rows: Sequence[Row]) -> Callable[[int], bool]:
        return lambda end: self._fault(rows[:end]) is not None

    def _refusal(self, number: int, row: Row, fault: str) -> UserError:
        fields = ", ".join(f"{name} ({_KINDS[type(value)]})" for name, value in list(row.items())[:12])
        yaml, include = self.sources.files[self.task], self.sources.include
        is_own = include is not None and yaml.is_relative_to(include)
        foundry = not is_own and row.keys() >= set(FIELDS["choices"]) and self.task in _CONVERTED
        remedy = f"fix it or {yaml}" if is_own else "see `modbench docs evaluation`"
        remedy = "examples/local_items.py converts files of llm-foundry" if foundry else remedy
        return UserError(
            f"{self.file}, line {number} is no item of task '{self.task}': {fault}; the line has "
            f"{fields or 'no fields'}; {remedy}"
        )

    def _check_kinds(self, lines: Sequence[tuple[int, Row]]) -> None:
        """Raises UserError: a line lacks a field that others have, or has it as null or as another kind
        of value, and the task depends on it."""
        first: dict[str, tuple[int, Row]] = {}
        for number, row in lines:
            for name, value in row.items():
                if value is not None:
                    first.setdefault(name, (number, row))
        for name, (at, base) in first.items():
            kind = _KINDS[type(base[name])]
            others = [line for line in lines if _KINDS[type(line[1].get(name))] != kind]
            if not others:
                continue
            number, row = others[0]
            whole, without = self._asked(base), self._asked({**base, name: None})
            if whole is None or whole == without:
                continue
            lacks = row.get(name) is None
            if lacks and without is not None and without.count("None") <= whole.count("None"):
                continue  # the task allows for it
            what = "null" if name in row else "missing"
            what = what if lacks else f"{_KINDS[type(row[name])]}"
            fault = f"field '{name}' is {what}, and line {at} has {kind}"
            raise self._refusal(number, row, fault)

    def _lacking(self, row: Row) -> str | None:
        """Return which fields ``row`` lacks of those that the task's templates name."""
        stated = self.sources.stated[self.task]
        needed: set[str] = set()
        for name in _TEMPLATES if "process_docs" not in stated else ():
            template = stated.get(name)
            if isinstance(template, str) and template.isidentifier():
                needed.add(template)
            elif isinstance(template, str) and "{" in template:
                needed |= meta.find_undeclared_variables(jinja2.Environment().parse(template))
        lacking = sorted(needed - row.keys())
        return f"it lacks {', '.join(map(repr, lacking))}" if lacking else None

    def _asked(self, row: Row) -> str | None:
        """Return what the task asks about ``row``; None if it can't."""
        try:
            task, docs = self._build([row])
            return repr([_asked(task, doc) for doc in docs])
        except Exception:  # any of the task's own functions
            return None

    def _fault(self, rows: Sequence[Row]) -> str | None:
        """Return why the task can't ask about one of ``rows``; None if it can."""
        try:
            task, docs = self._build(rows)
            stated = (getattr(task.config, name, None) for name in _TEMPLATES)
            for name in stated:
                if isinstance(name, str) and name.isidentifier() and name not in docs.features:
                    return f"it lacks '{name}'"
            return next(filter(None, (_item_fault(task, doc) for doc in docs)), None)
        except Exception as error:  # any of the task's own functions
            if _NO_ITEM.search(str(error)):  # the task keeps none of these
                return None
            return _reason(error)

    def _build(self, rows: Sequence[Row]) -> tuple[Any, Any]:
        """Build lm-eval's task on ``rows`` alone; return it and its documents."""
        sources, task = self.sources, self.task
        with tempfile.TemporaryDirectory(prefix="modbench-items-") as made:
            file = Path(made, "items.jsonl")
            file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            config = sources.config(task, Path(made, "cache"))
            splits = {split: str(file) for split in sources.data_files(task)}
            config["dataset_kwargs"] |= {"data_files": splits}
            write_yaml(Path(made, "task.yaml"), sources.files[task], config)
            built = TaskManager(include_path=made, include_defaults=False).load([task])["tasks"][task]
            return built, built.eval_docs  # 0.5 reads the file only now


def _asked(task: Any, doc: Any) -> tuple[Any, ...]:
    """Return text, target and choices of an item, and the scores that made-up answers get."""
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
    return task.doc_to_text(doc), task.doc_to_target(doc), choices, _scores(task, doc, choices)


def _scores(task: Any, doc: Any, choices: Any) -> Any:
    """Return what a task's own function of results, which may read fields of its own, makes of made-up
    answers."""
    if not callable(task.config.process_results) or task.OUTPUT_TYPE == "loglikelihood_rolling":
        return None
    if task.OUTPUT_TYPE == "generate_until":
        return task.process_results(doc, [""])
    return task.process_results(doc, [(-1.0, False)] * len(choices or [None]))


def _item_fault(task: Any, doc: Any) -> str | None:
    """Return what is wrong with an item as the task asks about it; None if nothing is. Raises any error
    of the task's own functions."""
    text, target, choices, _ = _asked(task, doc)
    if task.OUTPUT_TYPE != "multiple_choice":
        wanted = text if task.OUTPUT_TYPE == "generate_until" else target
        return None if _is_text(wanted) else f"what is scored is {wanted!r}; it must be text"
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        return f"its choices are {choices!r}; they must be a list of two or more"
    for number, choice in enumerate(choices):
        if not _is_text(choice):
            return f"choice {number} is {choice!r}; it must be text that is not empty"
    if isinstance(text, int):  # the contexts are the choices, as in winogrande
        text, target = target, text
    right = target if isinstance(target, list) and target else [target]
    for answer in right:
        if answer not in choices and not (isinstance(answer, int) and 0 <= answer < len(choices)):
            return f"its answer, {answer!r}, is none of its {len(choices)} choices, counted from 0"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _reason(error: Exception) -> str:
    """Return what the error of a task's template or function says."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return f"it lacks {error}"
    if match := re.match(r"'(\w+)' is undefined|'dict object' has no attribute '(\w+)'", str(error)):
        return f"it lacks '{match[1] or match[2]}'"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
