"""The command `modbench new-router`. Imports no torch."""

import json
import re
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated
from urllib.request import url2pathname

from tyro.conf import Positional, arg

import modbench
from modbench.errors import UserError
from modbench.routing.registry import router_names

#: The files of a package, with `my_router` in place of the name, and where they go.
_TEMPLATES = Path(__file__).parent / "package"
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "router.py": "src/modbench_my_router/__init__.py",
    "test_my_router.py": "tests/test_my_router.py",
    "ci.yml": ".github/workflows/ci.yml",
    "my_router.flops.json": "my_router.flops.json",
}
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def new_router(name: Annotated[Positional[str], arg(metavar="NAME")], /) -> int:
    """Write a package with a router of your own into the folder NAME: its entry point, a router to
    edit, tests that run the audit and the FLOP gate, and a workflow that runs them.

    Example: modbench new-router my_idea

    Args:
        name: name of the router: lowercase letters, digits and underscores
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"new-router: '{name}' can't be the name of a router; use lowercase letters, digits and "
            "single underscores, such as my_idea"
        )
    if name in router_names():
        raise UserError(f"new-router: a router '{name}' is installed already; choose another name")
    folder, source = Path(name), modbench_source()
    if folder.exists() or folder.is_symlink():
        raise UserError(f"new-router: {folder} is there already; choose another name, or remove it")
    for template, path in _FILES.items():
        file = folder / _named(path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = (_TEMPLATES / f"{template}.in").read_text(encoding="utf-8")
        written = _named(text, name).replace("MODBENCH_SOURCE", source)
        file.write_text(written, encoding="utf-8")
    print(f"{folder}/{_named(_FILES['router.py'], name)} holds the router. Next:")
    print(f"  python -m pip install --editable ./{name}")
    print(f"  modbench check {name}")
    if "file:" in source:
        print(
            f"  in .github/workflows/ci.yml, replace {source} by a git+https:// address before you push"
        )
    return 0


def modbench_source() -> str:
    """Return the source that pip installed modbench from: a git address with its commit, that of a
    clone's origin too; a folder or file; or an index."""
    try:
        stated = distribution("modbench").read_text("direct_url.json")
        if stated is None:
            return "modbench"
        origin = json.loads(stated)
    except PackageNotFoundError:  # a checkout on the path
        origin = {"url": Path(modbench.__file__).parents[1].as_uri()}
    url, commit = origin["url"], origin.get("vcs_info", {}).get("commit_id")
    if url.startswith("file:"):
        clone = url2pathname(url.removeprefix("file:").removeprefix("//"))
        remote = _git(clone, "remote", "get-url", "origin")
        if remote.startswith("https://"):
            url, commit = remote, _git(clone, "rev-parse", "HEAD")
    return f"modbench @ git+{url}@{commit}" if commit else f"modbench @ {url}"


def _git(folder: str, *words: str) -> str:
    """Return what git says in ``folder``; empty if it has nothing to say."""
    with suppress(OSError):
        command = ["git", "-C", folder, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _named(text: str, name: str) -> str:
    """Replace the names of the template in ``text``."""
    title = "".join(part.capitalize() for part in name.split("_")).removesuffix("Router")
    text = text.replace("my_router", name).replace("my-router", name.replace("_", "-"))
    return text.replace("MyRouter", f"{title}Router")
