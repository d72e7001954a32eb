"""Names of lm-eval's tasks, of ours and of a user's, read from their YAML files without lm-eval's index,
which takes 20 to 90 seconds to build. Imports neither lm-eval nor torch.

``include``: a folder of a user's YAML files, whose names come before all others; None: no such folder.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from modbench.errors import UserError, is_file, nearest_names
from modbench.evaluate.tasks import FOLDER, TASKS

_NAME = re.compile(rb"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[\]]+)", re.MULTILINE)
_TAG = re.compile(rb"^[\"']?tag[\"']?[ \t]*:[ \t]*((?:[^\n]|\n[ \t]*-)*)", re.MULTILINE)
_INCLUDE = re.compile(rb"^[\"']?include[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[\]]+)", re.MULTILINE)
_WORD = re.compile(rb"[^\s\"',\[\]#-][^\s\"',\[\]#]*")


class Index(NamedTuple):
    """Files of tasks and groups by name, and names of the tasks of each tag."""

    files: dict[str, Path]
    tags: dict[str, list[str]]


def check_names(
    names: Iterable[str], *, include: Path | None = None, data_dir: Path | None = None
) -> None:
    """Check that each of ``names`` is a task, group or tag, ours, lm-eval's or of ``include``, or a file
    of items in ``data_dir``. Raises UserError: one is not known, with the nearest names; ``include`` is
    no folder, or a file there is not YAML."""
    if include is not None:
        check_include(include)
    for name in names:
        known = name in TASKS or file_of(name, include) is not None or name in scan(include).tags
        if not known and not (data_dir and is_file(items_file(name, data_dir))):
            raise unknown_task(name, include, data_dir)


def check_include(folder: Path) -> None:
    """Raises UserError: ``folder`` is no folder, holds no task, or a file there is not YAML."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with YAML files of lm-eval tasks")
    if not _of_include(folder):
        raise UserError(
            f"{folder} has no file *.yaml with the field 'task' or 'group'; give a folder of lm-eval "
            "tasks (modbench docs evaluation)"
        )


def items_file(task: str, folder: Path) -> Path:
    """Return the path of the items of ``task`` in a folder of local files."""
    return folder / f"{task}.jsonl"


def unknown_task(name: str, include: Path | None = None, data_dir: Path | None = None) -> UserError:
    """Return the error of an unknown task, with the nearest names."""
    known = {*scan(include).files, *scan(include).tags}
    looked = f", and {data_dir} has no {items_file(name, data_dir).name}" if data_dir else ""
    return UserError(f"task '{name}' is not known{looked}; {nearest_names(name, known)}")


def file_of(name: str, include: Path | None = None) -> Path | None:
    """Return the YAML file of a task or group; None if there is none of this name."""
    included = _of_include(include) if include is not None else {}
    return included.get(name) or _guess(name) or scan(include).files.get(name)


def _guess(name: str) -> Path | None:
    """Return the file NAME.yaml that declares ``name``, if there is one; reads no other."""
    for path in _paths():
        if path.endswith(f"{os.sep}{name}.yaml") and name in _declared(Path(path).read_bytes()):
            return Path(path)
    return None


@lru_cache(maxsize=2)
def scan(include: Path | None = None) -> Index:
    """Read all task files for the names that they declare; takes about a second."""
    contents = {path: Path(path).read_bytes() for path in _paths()}
    files: dict[str, Path] = {}
    tags: dict[str, list[str]] = defaultdict(list)
    for name, file in (_of_include(include) if include is not None else {}).items():
        files[name] = file
        for tag in _words(_read_yaml(file).get("tag")):
            tags[tag].append(name)
    for path, content in list(contents.items()):
        for name in _declared(content):
            if name not in files:
                files[name] = Path(path)
                for tag in _tags(path, contents):
                    tags[tag].append(name)
    return Index(files, tags)


@lru_cache(maxsize=2)
def _of_include(folder: Path) -> dict[str, Path]:
    """Return the files of a user's tasks and groups by name. Raises UserError: one is not YAML."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        stated = _read_yaml(path)
        name = stated.get("group", stated.get("task"))
        if isinstance(name, str):
            files.setdefault(name, path)
    return files


class _Loader(yaml.SafeLoader):
    """Reads YAML with lm-eval's tag of a function as text."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _read_yaml(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the fields of a task file, with those of the files that it includes. ``within``: files that
    include it."""
    path = path.resolve()
    if path in within:
        raise UserError(f"{path} includes itself; remove 'include' from it or a file that it includes")
    try:
        stated = yaml.load(path.read_bytes(), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); a task file includes it") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())}); fix it there") from error
    if not isinstance(stated, dict):
        return {}
    fields: dict[str, Any] = {}
    for included in _words(stated.get("include")):
        fields |= _read_yaml(path.parent / str(included), (*within, path))
    return fields | stated


def _words(stated: Any) -> list[str]:
    return list(stated) if isinstance(stated, list) else [] if stated is None else [stated]


def _tags(path: str, contents: dict[str, bytes]) -> list[str]:
    """Return the tags of a task file: its own, or those of the file that it includes."""
    if path not in contents:  # included files often lack the suffix
        contents[path] = Path(path).read_bytes() if is_file(Path(path)) else b""
    content = contents[path]
    if lines := _TAG.findall(content):
        return [word.decode() for word in _WORD.findall(lines[0])]
    included = _INCLUDE.search(content)
    if included is None:
        return []
    base = os.path.join(os.path.dirname(path), included[1].decode())
    return _tags(os.path.normpath(base), contents)


def _declared(content: bytes) -> list[str]:
    return [name.decode(errors="replace") for name in _NAME.findall(content)]


@lru_cache(maxsize=1)
def _paths() -> list[str]:
    """All task files, ours first."""
    lm_eval = find_spec("lm_eval")  # not imported, which takes seconds
    packages = list(lm_eval.submodule_search_locations or ()) if lm_eval else []
    roots = (str(FOLDER), *(os.path.join(package, "tasks") for package in packages))
    return [
        os.path.join(folder, file)
        for root in roots
        for folder, _, files in sorted(os.walk(root))
        for file in sorted(files)
        if file.endswith(".yaml")
    ]
