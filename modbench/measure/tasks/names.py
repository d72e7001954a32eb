"""Names of lm-eval's tasks and of ours, read from their YAML files without lm-eval's index, which takes
20 to 90 seconds to build. Imports neither lm-eval nor torch.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from modbench.errors import UserError, is_file, nearest_names
from modbench.measure.tasks import FOLDER, TASKS

_NAME = re.compile(rb"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[\]]+)", re.MULTILINE)
_TAG = re.compile(rb"^[\"']?tag[\"']?[ \t]*:[ \t]*((?:[^\n]|\n[ \t]*-)*)", re.MULTILINE)
_INCLUDE = re.compile(rb"^[\"']?include[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[\]]+)", re.MULTILINE)
_WORD = re.compile(rb"[^\s\"',\[\]#-][^\s\"',\[\]#]*")


class Index(NamedTuple):
    """Files of tasks and groups by name, and names of the tasks of each tag."""

    files: dict[str, Path]
    tags: dict[str, list[str]]


def check_names(names: Iterable[str]) -> None:
    """Check that each of ``names`` is a task, group or tag, ours or lm-eval's. Raises UserError: one is
    not known, with the nearest names."""
    for name in names:
        if name not in TASKS and file_of(name) is None and name not in scan().tags:
            raise unknown_task(name)


def unknown_task(name: str) -> UserError:
    """Return the error of an unknown task, with the nearest names."""
    known = {*scan().files, *scan().tags}
    return UserError(f"task '{name}' is not known; {nearest_names(name, known)}")


def file_of(name: str) -> Path | None:
    """Return the YAML file of a task or group; None if there is none of this name."""
    return _guess(name) or scan().files.get(name)


def _guess(name: str) -> Path | None:
    """Return the file NAME.yaml that declares ``name``, if there is one; reads no other."""
    for path in _paths():
        if path.endswith(f"{os.sep}{name}.yaml") and name in _declared(Path(path).read_bytes()):
            return Path(path)
    return None


@lru_cache(maxsize=1)
def scan() -> Index:
    """Read all task files for the names that they declare; takes about a second."""
    contents = {path: Path(path).read_bytes() for path in _paths()}
    files: dict[str, Path] = {}
    tags: dict[str, list[str]] = defaultdict(list)
    for path, content in list(contents.items()):
        for name in _declared(content):
            if name not in files:
                files[name] = Path(path)
                for tag in _tags(path, contents):
                    tags[tag].append(name)
    return Index(files, tags)


def _tags(path: str, contents: dict[str, bytes]) -> list[str]:
    """Return the tags of a task file: its own, or those of the file that it includes."""
    if path not in contents:  # included files often lack the suffix
        contents[path] = Path(path).read_bytes() if is_file(Path(path)) else b""
    content = contents[path]
    if found := _TAG.findall(content):
        return [word.decode() for word in _WORD.findall(found[0])]
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
    places = list(lm_eval.submodule_search_locations or ()) if lm_eval else []
    roots = (str(FOLDER), *(os.path.join(place, "tasks") for place in places))
    return [
        os.path.join(folder, file)
        for root in roots
        for folder, _, files in sorted(os.walk(root))
        for file in sorted(files)
        if file.endswith(".yaml")
    ]
