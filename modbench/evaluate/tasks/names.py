"""Names of tasks, groups and tags: ours, lm-eval's and a user's, from lm-eval's own index of YAML files.

``include``: a folder of a user's YAML files, whose names come before all others; None: no such folder.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from modbench.data.cache_folder import cache_folder, file_lock, put
from modbench.errors import UserError, nearest_names
from modbench.evaluate.tasks import FOLDER, TASKS

#: The YAML file of each task and group, relative to its folder, and the tasks of each tag.
Index = dict[str, str | list[str]]


def check_names(names: Iterable[str], include: Path | None = None) -> None:
    """Check that each of ``names`` is a task, group or tag, ours, lm-eval's or of ``include``. Raises
    UserError: one is not known, with the nearest names; ``include`` is no folder of tasks."""
    if include is not None:
        _check_include(include)
    for name in names:
        if name not in TASKS and find_task(name, include) is None:
            raise unknown_task(name, include)


def _check_include(folder: Path) -> None:
    """Raises UserError: ``folder`` is no folder, holds no task, or lm-eval can't read a file there."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with YAML files of lm-eval tasks")
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # lm-eval's index would leave the file out
            reason = " ".join(str(error).split())
            raise UserError(f"{path} can't be read ({reason}); fix it there") from error
    if not _of_folder(folder):
        raise UserError(
            f"{folder} has no file *.yaml with the field 'task' or 'group'; give a folder of lm-eval "
            "tasks (modbench docs evaluation)"
        )


def unknown_task(name: str, include: Path | None = None) -> UserError:
    """Return the error of an unknown task, with the nearest names."""
    known = {known for _, index in _indexes(include) for known in index}
    return UserError(f"task '{name}' is not known; {nearest_names(name, known)}")


def find_task(name: str, include: Path | None = None) -> Path | list[str] | None:
    """Return the YAML file of a task or group, the tasks of a tag, or None for another name."""
    for folder, index in _indexes(include):
        if name in index:
            found = index[name]
            return folder / found if isinstance(found, str) else found
    return None


def _indexes(include: Path | None) -> Iterator[tuple[Path, Index]]:
    """Yield each folder of tasks and its names, in the order in which they are looked up."""
    for folder in (include, FOLDER):
        if folder is not None:
            folder = folder.resolve()
            yield folder, _of_folder(folder)
    lm_eval = find_spec("lm_eval")  # not imported, which takes seconds
    assert lm_eval is not None
    assert lm_eval.submodule_search_locations
    folder = Path(lm_eval.submodule_search_locations[0], "tasks")
    yield folder, _of_lm_eval(folder)


@lru_cache(maxsize=2)
def _of_folder(folder: Path) -> Index:
    from lm_eval.tasks._index import TaskIndex

    return {
        name: sorted(entry.tags) if entry.yaml_path is None else str(entry.yaml_path.relative_to(folder))
        for name, entry in TaskIndex.build([folder]).items()
    }


@lru_cache(maxsize=1)
def _of_lm_eval(folder: Path) -> Index:
    """Return the names of lm-eval's tasks, which are kept in the cache folder for each version."""
    path = cache_folder() / f"lm-eval-{version('lm_eval')}.json"
    if not path.is_file():
        with file_lock(path, _say):
            if not path.is_file():
                _say("reading the names of lm-eval's tasks, once a version: takes up to 90 seconds")
                put(path, json.dumps(_of_folder(folder)).encode())
    index: Index = json.loads(path.read_bytes())
    return index


def _say(text: str) -> None:
    print(f"modbench: {text}", file=sys.stderr, flush=True)
