"""Checks how a router class declares itself and its options, when it is registered."""

import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from modbench.errors import UserError
from modbench.routing.hook_checks import check_hooks
from modbench.routing.plugin_fault import DECORATORS
from modbench.routing.router import Router


def check_declaration(name: str, router: type) -> None:
    """Raise a `UserError` if ``router`` is not a frozen dataclass that derives from `Router` and builds
    layers, an option lacks a type, or a hook is wrong (`check_hooks`)."""
    kind = f"router '{name}' ({router.__qualname__})"
    if not issubclass(router, Router):
        raise UserError(f"{kind} must derive from DepthRouter, ExpertRouter or Router of modbench")
    parameters = vars(router).get("__dataclass_params__")  # a base class has its own
    if parameters is None or not parameters.frozen:
        raise UserError(f"{kind} must be a frozen dataclass; put {DECORATORS.format(name)} above it")
    if inspect.isabstract(router):
        missing = ", ".join(sorted(router.__abstractmethods__))
        raise UserError(
            f"{kind} does not define {missing}; define it, or derive from DepthRouter or ExpertRouter"
        )
    for option, value in _untyped(router):
        typed = f"{option}: {type(value).__name__} = {value!r}"
        raise UserError(f"{kind}: option '{option}' has no type; write `{typed}`")
    check_hooks(kind, router)


def _untyped(router: type[Router]) -> Iterator[tuple[str, Any]]:
    """Yield class attributes that are meant as options, but are none without an annotation."""
    options = {field.name for field in fields(router)}  # type: ignore[arg-type]
    for kind in router.__mro__[: router.__mro__.index(Router)]:
        annotated = inspect.get_annotations(kind)
        for name, value in vars(kind).items():
            number_or_text = isinstance(value, bool | int | float | str) and name.islower()
            meant = number_or_text or (name in options and isinstance(value, tuple | None))
            known = name in annotated or name == "name" or hasattr(Router, name)
            if meant and not known and not name.startswith("_"):
                yield name, value
