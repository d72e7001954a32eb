"""What there is, by name: routers, suites, metrics. Loads no torch."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from modbench.report.metrics import METRICS
from modbench.routing.registry import router_names
from modbench.sweep.suite import shipped_suites


def _routers() -> Iterator[tuple[str, str]]:
    for name in router_names():
        yield name, _first_sentence(name)


def _first_sentence(router: str) -> str:
    """What a shipped router's file says of itself, read and not run."""
    spec = find_spec(f"modbench.routers.{router}") if router.isidentifier() else None
    if spec is None or spec.origin is None:
        return "from an installed package"
    words = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
    return re.split(r"\.(?=\s+[A-Z]|\s*$)", words, maxsplit=1)[0].replace("\n", " ")


def _suites() -> Iterator[tuple[str, str]]:
    for name, path in shipped_suites().items():
        yield name, tomllib.loads(path.read_text(encoding="utf-8"))["suite"].get("description", "")


def _metrics() -> Iterator[tuple[str, str]]:
    for metric in METRICS.values():
        better = "" if metric.direction == "none" else f", {metric.direction} is better"
        yield metric.name, f"{metric.meaning} [{metric.unit}{better}; {metric.kind}]"


LISTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "routers": _routers,
    "suites": _suites,
    "metrics": _metrics,
}


def list_lines(what: str) -> Iterator[str]:
    """One of `LISTS` as text: a heading, then two lines to an entry."""
    yield what
    for name, meaning in LISTS[what]():
        yield f"  {name}"
        yield f"      {meaning}"
