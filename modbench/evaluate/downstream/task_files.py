"""Finds the YAML files of tasks by name, those of groups and tags included.

``include``: a folder of a user's YAML files. ``data_dir``: a folder of local files, in which a file of
one of the formats of `modbench.evaluate.downstream.formats` is a task of its own.
"""

from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from modbench.errors import UserError, is_file
from modbench.evaluate.downstream.formats import format_of
from modbench.evaluate.tasks.names import find_task, items_file, unknown_task


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
