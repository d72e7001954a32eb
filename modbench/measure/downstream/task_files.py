"""Finds lm-eval's tasks by name without its index, which takes 20 to 90 seconds to build."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.tasks._yaml_loader import load_yaml

from modbench.errors import UserError, is_file, nearest_names
from modbench.measure.tasks import FOLDER

_NAME = re.compile(rb"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[\]]+)", re.MULTILINE)
_TAG = re.compile(rb"^[\"']?tag[\"']?[ \t]*:[ \t]*((?:[^\n]|\n[ \t]*-)*)", re.MULTILINE)
_INCLUDE = re.compile(rb"^[\"']?include[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[\]]+)", re.MULTILINE)
_WORD = re.compile(rb"[^\s\"',\[\]#-][^\s\"',\[\]#]*")


class Index(NamedTuple):
    """Files of tasks and groups by name, and names of the tasks of each tag."""

    files: dict[str, Path]
    tags: dict[str, list[str]]


def files_of(names: Iterable[str]) -> dict[str, Path]:
    """Return the YAML file of each task and group that ``names`` need: themselves, and the members of
    groups and tags. Raises UserError: a name that neither lm-eval nor modbench has."""
    found: dict[str, Path] = {}
    missing = list(dict.fromkeys(names))
    while missing:
        name = missing.pop(0)
        if name in found:
            continue
        path = _guess(name) or scan().files.get(name)
        if path is not None:
            found[name] = path
            missing += _members(load_yaml(path, resolve_func=False))
        elif name in scan().tags:
            missing += scan().tags[name]
        else:
            known = {*scan().files, *scan().tags}
            raise UserError(f"task '{name}' is not known; {nearest_names(name, known)}")
    return found


def _guess(name: str) -> Path | None:
    """Return the file NAME.yaml that declares ``name``, if there is one; reads no other."""
    for path in _paths():
        if path.endswith(f"{os.sep}{name}.yaml") and name in _declared(Path(path).read_bytes()):
            return Path(path)
    return None


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
    import lm_eval.tasks

    roots = (str(FOLDER), os.path.dirname(lm_eval.tasks.__file__))
    return [
        os.path.join(folder, file)
        for root in roots
        for folder, _, files in sorted(os.walk(root))
        for file in sorted(files)
        if file.endswith(".yaml")
    ]
