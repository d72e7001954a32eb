"""The YAML files of tasks: those that a name needs, and copies for lm-eval's ``include_path``.

``include``: a folder of a user's YAML files.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from modbench.errors import UserError
from modbench.evaluate.tasks.names import find_task, unknown_task


@contextmanager
def including(files: Iterable[Path]) -> Iterator[Path]:
    """Context with a folder of YAML files for lm-eval's ``include_path``, each of which includes one of
    ``files``. Of a task with local items, lm-eval's copy of these lies there, too: one that is kept
    would not follow a changed file."""
    with tempfile.TemporaryDirectory(prefix="modbench-tasks-") as made:
        for number, path in enumerate(files):
            stated = load_yaml(path, resolve_func=False)
            fields: dict[str, Any] = {"include": str(path.resolve())}
            if stated.get("dataset_path") == "json":
                kept = {"cache_dir": str(Path(made, "cache")), "keep_in_memory": True}
                fields["dataset_kwargs"] = (stated.get("dataset_kwargs") or {}) | kept
            text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())
            Path(made, f"{number}.yaml").write_text(text, encoding="utf-8")  # JSON is YAML
        yield Path(made)


def files_of(names: Iterable[str], include: Path | None = None) -> dict[str, Path]:
    """Return the YAML file of each task and group that ``names`` need: themselves, and the members of
    groups and tags. Raises UserError: a name that is not known."""
    paths: dict[str, Path] = {}
    left = list(dict.fromkeys(names))
    while left:
        name = left.pop(0)
        if name in paths:
            continue
        found = find_task(name, include)
        if isinstance(found, Path):
            paths[name] = found
            left += members(load_yaml(found, resolve_func=False), include)
        elif found is not None:
            left += found
        else:
            raise unknown_task(name, include)
    return paths


def files_by_name(names: Iterable[str], include: Path | None = None) -> dict[str, dict[str, Path]]:
    """Return `files_of` of each of ``names``. Raises UserError: one contains another, or a task that
    another contains too, which would be scored twice."""
    files = {name: files_of([name], include) for name in names}
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
