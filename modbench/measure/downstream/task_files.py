"""Finds the YAML files of lm-eval's tasks by name, those of groups and tags included."""

from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from modbench.errors import UserError
from modbench.measure.tasks.names import file_of, scan, unknown_task


def files_of(names: Iterable[str]) -> dict[str, Path]:
    """Return the YAML file of each task and group that ``names`` need: themselves, and the members of
    groups and tags. Raises UserError: a name that neither lm-eval nor modbench has."""
    found: dict[str, Path] = {}
    missing = list(dict.fromkeys(names))
    while missing:
        name = missing.pop(0)
        if name in found:
            continue
        path = file_of(name)
        if path is not None:
            found[name] = path
            missing += _members(load_yaml(path, resolve_func=False))
        elif name in scan().tags:
            missing += scan().tags[name]
        else:
            raise unknown_task(name)
    return found


def files_by_name(names: Iterable[str]) -> dict[str, dict[str, Path]]:
    """Return `files_of` of each of ``names``. Raises UserError: one contains another, or a task that
    another contains too, which would be scored twice."""
    found = {name: files_of([name]) for name in names}
    for one, other in permutations(found, 2):
        if other in found[one]:
            raise UserError(f"'{one}' contains '{other}', which is named too; remove one of them")
    for one, other in permutations(found, 2):
        for task in found[one].keys() & found[other].keys():
            raise UserError(f"'{one}' and '{other}' both contain '{task}'; remove one of them")
    return found


def _members(config: dict[str, Any]) -> Iterator[str]:
    """Yield the names that a group's configuration lists, also in groups that it defines."""
    listed = config.get("task")
    for member in listed if isinstance(listed, list) else ():
        if isinstance(member, str):
            yield member
        elif isinstance(member.get("task"), list):
            yield from _members(member)
        else:
            # A task or group that is defined in place has what a reference lacks.
            name = member.get("task") or member.get("group")
            if name in scan().files or name in scan().tags:
                yield name
