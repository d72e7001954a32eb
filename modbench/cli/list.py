"""The command `modbench list`. The list of routers loads torch."""

import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from modbench.errors import UserError
from modbench.records.metrics import METRICS
from modbench.routing.registry import router_class, router_names
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
    return {name: _first_sentence(name) for name in router_names()}


def _first_sentence(router: str) -> str:
    """The first sentence of the docstring of the router's module, or the reason why it is broken."""
    try:
        docstring = sys.modules[router_class(router).__module__].__doc__ or "from an installed package"
    except UserError as error:
        return "BROKEN: " + " ".join(str(error).split()).removeprefix(f"router '{router}': ")
    return " ".join(re.split(r"\.(?=\s+[A-Z]|\s*$)", docstring.strip(), maxsplit=1)[0].split())


_LISTS: Mapping[str, Callable[[], Mapping[str, str]]] = {
    "routers": _routers,
    "suites": lambda: {
        name: tomllib.loads(path.read_text(encoding="utf-8"))["suite"].get("description", "")
        for name, path in shipped_suites().items()
    },
    "metrics": lambda: {
        metric.name: f"{metric.meaning} [{metric.unit}; better: {metric.direction}; {metric.kind}]"
        for metric in METRICS.values()
    },
}
