"""Tasks that read local files in place of the hub, by lm-eval's own configuration: ``dataset_path:
json`` with ``data_files``.

``TASK.jsonl`` has the fields of the data set on the hub; few-shot examples are in ``TASK_SPLIT.jsonl``,
such as ``arc_easy_train.jsonl``. A task of a user's YAML file may name files of its own.

``include``: a folder of a user's YAML files. ``data_dir``: a folder of local files, in which a file of
one of the formats of `modbench.evaluate.downstream.formats` is a task of its own.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from modbench.errors import UserError, is_file
from modbench.evaluate.downstream.formats import format_of
from modbench.evaluate.tasks.names import find_task, items_file, unknown_task

Config = dict[str, Any]
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Source of the task, group or tag ``name`` and its members. ``files``: their YAML files;
    ``data_dir``: folder of local files; ``include``: folder of a user's YAML files."""

    name: str
    files: Mapping[str, Path]
    data_dir: Path | None = None
    include: Path | None = None

    @cached_property
    def stated(self) -> dict[str, Config]:
        """The content of the YAML files, functions as text."""
        return {name: load_yaml(path, resolve_func=False) for name, path in self.files.items()}

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Tasks whose file of items is not in ``data_dir``."""
        return tuple(
            task for task in self.files if not self.data_files(task) and self._reads_files(task)
        )

    def missing_of(self, name: str) -> tuple[str, ...]:
        """Return the tasks of `missing` that belong to ``name``, a task, group or tag."""
        if members_of := self._members(name):
            tasks = [task for member in members_of for task in self.missing_of(member)]
            return tuple(dict.fromkeys(tasks))
        return (name,) if name in self.missing else ()

    def data_files(self, task: str) -> dict[str, str | list[str]]:
        """Return the local files of ``task`` by split; none if it reads no file, or its file is missing.
        A split without a file is given that of the evaluated split: lm-eval loads all splits, and
        few-shot examples from it are refused."""
        stated = self.stated[task]
        folder = self.data_dir
        if folder is not None and self._reads_files(task) and items_file(task, folder).is_file():
            file = str(items_file(task, folder))
            evaluated = evaluated_split(stated)
            named = [*(stated.get(name) for name in _SPLITS), few_shot_split(stated)]
            others = [split for split in named if split and split != evaluated]
            return {evaluated: file, **{split: self._of_split(task, split) or file for split in others}}
        files = (stated.get("dataset_kwargs") or {}).get("data_files") or {}
        if stated.get("dataset_path") != "json":  # files of a data set on the hub
            return {}
        return files if isinstance(files, dict) else {"train": files}

    def lacks_examples(self, task: str) -> str | None:
        """Return the name of the file of few-shot examples that ``task`` needs and ``data_dir`` lacks;
        None if nothing is lacking."""
        stated = self.stated[task]
        split = few_shot_split(self.stated[task])
        if self.data_dir is None or not items_file(task, self.data_dir).is_file():
            return None
        if split in (None, evaluated_split(stated)) or self._of_split(task, str(split)):
            return None
        return f"{task}_{split}.jsonl"

    def _of_split(self, task: str, split: str) -> str | None:
        file = Path(self.data_dir or ".", f"{task}_{split}.jsonl")
        return str(file) if file.is_file() else None

    def _reads_files(self, task: str) -> bool:
        """Return True if ``task`` reads a file of ``data_dir``, where there is one."""
        stated = self.stated[task]
        return self.data_dir is not None and "dataset_path" in stated and "group" not in stated

    def check(self) -> None:
        """Raises UserError: no file of items of ``name`` is there."""
        if self._present(self.name):
            return
        names = ", ".join(items_file(task, Path()).name for task in self.missing)
        what = "task" if self.name in self.missing else "group"
        raise UserError(
            f"{what} '{self.name}' needs {names} in --data-dir {self.data_dir}; see "
            "`modbench docs evaluation`"
        )

    def config(self, task: str, cache: Path | None = None) -> Config:
        """Return the fields that replace those of the YAML file of ``task``: its local files, or the
        members of a group that are present. ``cache``: folder for lm-eval's copy of the items."""
        if task in self.missing:
            return {}
        if files := self.data_files(task):
            kept = {"cache_dir": str(cache), "keep_in_memory": True} if cache else {}
            given = (self.stated[task].get("dataset_kwargs") or {}) | {"data_files": files} | kept
            source = {"dataset_path": "json", "dataset_name": None, "custom_dataset": None}
            return {"task": task, **(source if self._reads_files(task) else {}), "dataset_kwargs": given}
        if all(map(self._present, self._members(task))):
            return {}
        return {"task": self._kept(self.stated[task]["task"])}

    def _kept(self, listed: list[Any]) -> list[Any]:
        """Return the members of a group's list that are present."""
        kept: list[Any] = []
        for member in listed:
            if isinstance(member, dict) and isinstance(member.get("task"), list):
                kept += [{**member, "task": some}] if (some := self._kept(member["task"])) else []
            else:
                name = member if isinstance(member, str) else member.get("task", member.get("group"))
                kept += [member] if self._present(name) else []
        return kept

    def _present(self, name: str) -> bool:
        """Return True if a task can be read, or a task of a group or tag can."""
        members_of = self._members(name)
        return any(map(self._present, members_of)) if members_of else name not in self.missing

    def _members(self, name: str) -> list[str]:
        if name in self.files:
            return list(members(self.stated[name], self.include))
        tagged = find_task(name, self.include)
        return [task for task in tagged if task in self.files] if isinstance(tagged, list) else []

    @contextmanager
    def written(self) -> Iterator[Path]:
        """Context with a folder of YAML files for lm-eval's ``include_path``, one for each task and
        group that is present."""
        with tempfile.TemporaryDirectory(prefix="modbench-tasks-") as made:
            for number, task in enumerate(filter(self._present, self.files)):
                config = self.config(task, Path(made, "cache"))
                write_yaml(Path(made, f"{number}.yaml"), self.files[task], config)
            yield Path(made)


def evaluated_split(stated: Mapping[str, Any]) -> str:
    """Return the split whose items are scored."""
    return stated.get("test_split") or stated.get("validation_split") or "test"


def few_shot_split(stated: Mapping[str, Any]) -> str | None:
    """Return the split that few-shot examples are drawn from; None for a task that states them."""
    config = stated.get("fewshot_config") or {}
    if config.get("samples"):
        return None
    return config.get("split") or stated.get("fewshot_split") or stated.get("training_split")


def write_yaml(path: Path, included: Path, config: Mapping[str, Any]) -> None:
    """Write a task file that includes ``included`` and replaces some of its fields."""
    # JSON is YAML.
    fields = {"include": str(included.resolve()), **config}
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())
    path.write_text(text, encoding="utf-8")


def files_of(
    names: Iterable[str], *, include: Path | None = None, data_dir: Path | None = None
) -> dict[str, Path]:
    """Return the YAML file of each task and group that ``names`` need: themselves, and the members of
    groups and tags. Raises UserError: a name that is not known, or a file of items whose format is
    not."""
    paths: dict[str, Path] = {}
    missing = list(dict.fromkeys(names))
    while missing:
        name = missing.pop(0)
        if name in paths:
            continue
        found = find_task(name, include)
        if isinstance(found, Path):
            paths[name] = found
            missing += members(load_yaml(found, resolve_func=False), include)
        elif found is not None:
            missing += found
        elif data_dir is not None and is_file(items_file(name, data_dir)):
            paths[name] = format_of(items_file(name, data_dir))
        else:
            raise unknown_task(name, include, data_dir)
    return paths


def files_by_name(
    names: Iterable[str], *, include: Path | None = None, data_dir: Path | None = None
) -> dict[str, dict[str, Path]]:
    """Return `files_of` of each of ``names``. Raises UserError: one contains another, or a task that
    another contains too, which would be scored twice."""
    files = {name: files_of([name], include=include, data_dir=data_dir) for name in names}
    for name, other in permutations(files, 2):
        if other in files[name]:
            raise UserError(f"'{name}' contains '{other}', which is named too; remove one of them")
    for name, other in permutations(files, 2):
        for task in files[name].keys() & files[other].keys():
            raise UserError(f"'{name}' and '{other}' both contain '{task}'; remove one of them")
    return files


def members(config: dict[str, Any], include: Path | None = None) -> Iterator[str]:
    """Yield the names that a group's configuration lists, also in groups that it defines."""
    listed = config.get("task")
    if "group" in config and isinstance(listed, str):
        listed = [listed]
    for member in listed if isinstance(listed, list) else ():
        if isinstance(member, str):
            yield member
        elif isinstance(member.get("task"), list):
            yield from members(member, include)
        else:
            # A task or group that is defined in place has what a reference lacks.
            name = member.get("task") or member.get("group")
            if find_task(name, include) is not None:
                yield name
