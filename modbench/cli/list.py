"""The command `modbench list`. Imports no torch."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from modbench.errors import UserError
from modbench.records.metrics import METRICS
from modbench.routing.registry import foreign_routers, router_class, router_names
from modbench.shipped import shipped_suites


def list_(
    what: Annotated[
        Positional[Literal["all", "routers", "suites", "metrics"]],
        arg(metavar="[all|routers|suites|metrics]", help_behavior_hint=""),
    ] = "all",
    /,
) -> int:
    """Name the routers, the shipped suites and the metrics. A router of an installed package that does
    not load is listed with the reason.

    Example: modbench list routers

    Args:
        what: all (the default), routers, suites or metrics
    """
    for name, entries in _LISTS.items():
        if what in ("all", name):
            print(name)
            for entry, meaning in entries().items():
                print(f"  {entry}\n      {meaning}")
    return 0


def _routers() -> dict[str, str]:
    foreign = foreign_routers()
    return {name: (_installed if name in foreign else _built_in)(name) for name in router_names()}


def _built_in(router: str) -> str:
    """Return the first sentence of the docstring of a router that this process has, without importing
    it if it is modbench's."""
    spec = find_spec(f"modbench.routers.{router}")
    if spec is None or spec.origin is None:  # registered by code of this process
        return _first_sentence(sys.modules[router_class(router).__module__].__doc__)
    return _first_sentence(ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())))


def _installed(router: str) -> str:
    """Return the first sentence of an installed router's docstring, or the reason why it is broken. Its
    package is loaded in a process of its own, which it may end."""
    command = f"from modbench.cli.list import describe; describe({router!r})"
    process = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    lines = process.stdout.splitlines()  # its last one; the package may print, too
    if process.returncode == 0 and lines:
        return lines[-1]
    return f"BROKEN: its package ended the process that imported it, with code {process.returncode}"


def describe(router: str) -> None:
    """Import the package of ``router`` and print the first sentence of its docstring, or the reason why
    it is broken."""
    try:
        words = sys.modules[router_class(router).__module__].__doc__
        print(_first_sentence(words) or "from an installed package")
    except UserError as error:
        reason = " ".join(str(error).split())
        print("BROKEN:", reason.removeprefix(f"router '{router}': "))


def _first_sentence(docstring: str | None) -> str:
    sentence = re.split(r"\.(?=\s+[A-Z]|\s*$)", (docstring or "").strip(), maxsplit=1)[0]
    return " ".join(sentence.split())


def _description(suite: Path) -> str:
    return str(tomllib.loads(suite.read_text(encoding="utf-8"))["suite"].get("description", ""))


_LISTS: Mapping[str, Callable[[], Mapping[str, str]]] = {
    "routers": _routers,
    "suites": lambda: {name: _description(path) for name, path in shipped_suites().items()},
    "metrics": lambda: {
        metric.name: f"{metric.meaning} [{metric.unit}; better: {metric.direction}; {metric.kind}]"
        for metric in METRICS.values()
    },
}
