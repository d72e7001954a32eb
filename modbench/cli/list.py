"""The command `modbench list`. Imports no torch."""

import ast
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from modbench.records.metrics import METRICS
from modbench.routing.registry import router_names
from modbench.shipped import shipped_suites


def list_(
    what: Annotated[
        Positional[Literal["all", "routers", "suites", "metrics"]],
        arg(metavar="[all|routers|suites|metrics]", help_behavior_hint=""),
    ] = "all",
    /,
) -> int:
    """Name the routers, the shipped suites and the metrics.

    Example: modbench list routers

    Args:
        what: all (the default), routers, suites or metrics
    """
    lists = {
        "routers": {name: _first_sentence(name) for name in router_names()},
        "suites": {name: _description(path) for name, path in shipped_suites().items()},
        "metrics": {
            metric.name: f"{metric.meaning} [{metric.unit}; better: {metric.direction}; {metric.kind}]"
            for metric in METRICS.values()
        },
    }
    for name, entries in lists.items():
        if what in ("all", name):
            print(name)
            for entry, meaning in entries.items():
                print(f"  {entry}\n      {meaning}")
    return 0


def _first_sentence(router: str) -> str:
    """Return the first sentence of a built-in router's docstring without importing it."""
    spec = find_spec(f"modbench.routers.{router}") if router.isidentifier() else None
    if spec is None or spec.origin is None:
        return "from an installed package"
    words = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
    return re.split(r"\.(?=\s+[A-Z]|\s*$)", words, maxsplit=1)[0].replace("\n", " ")


def _description(suite: Path) -> str:
    return str(tomllib.loads(suite.read_text(encoding="utf-8"))["suite"].get("description", ""))
