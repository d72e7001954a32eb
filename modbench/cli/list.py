"""The command `modbench list`. Imports no torch."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


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
    for name, entries in LISTS.items():
        if what in ("all", name):
            print(name)
            for entry, meaning in entries():
                print(f"  {entry}\n      {meaning}")
    return 0


def _routers() -> Iterator[tuple[str, str]]:
    from modbench.routing.registry import router_names

    for name in router_names():
        yield name, _first_sentence(name)


def _first_sentence(router: str) -> str:
    """Return the first sentence of a built-in router's docstring without importing it."""
    spec = find_spec(f"modbench.routers.{router}") if router.isidentifier() else None
    if spec is None or spec.origin is None:
        return "from an installed package"
    words = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
    return re.split(r"\.(?=\s+[A-Z]|\s*$)", words, maxsplit=1)[0].replace("\n", " ")


def _suites() -> Iterator[tuple[str, str]]:
    from modbench.sweep.suite import shipped_suites

    for name, path in shipped_suites().items():
        yield name, tomllib.loads(path.read_text(encoding="utf-8"))["suite"].get("description", "")


def _metrics() -> Iterator[tuple[str, str]]:
    from modbench.report.metrics import METRICS

    for metric in METRICS.values():
        better = "" if metric.direction == "none" else f", {metric.direction} is better"
        yield metric.name, f"{metric.meaning} [{metric.unit}{better}; {metric.kind}]"


LISTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "routers": _routers,
    "suites": _suites,
    "metrics": _metrics,
}
