"""Finds routers by decorator, entry point and plugin file. Imports no torch by itself."""

import hashlib
import importlib.util
import json
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from modbench.errors import FAULTS, UserError, known_names
from modbench.routing.plugin_code import code_sha256
from modbench.typed import checked

if TYPE_CHECKING:
    from modbench.routing.router import Router

GROUP = "modbench.routers"
_registered: "dict[str, type[Router]]" = {}
#: File and code hash of each router that a plugin file registered.
_sources: dict[str, tuple[Path, str]] = {}
R = TypeVar("R", bound="type[Router]")


def register_router(name: str) -> Callable[[R], R]:
    """Register the decorated dataclass under ``name``.

    Raises:
        UserError: the name is taken or malformed, or the class is not a frozen dataclass that derives
            from `Router`.
    """

    def register(router: R) -> R:
        from modbench.routing.router import Router

        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(
                f"router name {name!r} must consist of letters, digits, '_', '.' and '-'; rename it"
            )
        if not isinstance(router, type) or not issubclass(router, Router):
            raise UserError(
                f"router '{name}' ({getattr(router, '__qualname__', router)}) must derive from "
                "modbench.routing.router.Router"
            )
        if not is_dataclass(router) or not router.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise UserError(
                f"router '{name}' ({router.__qualname__}) must be a frozen dataclass; "
                "put @dataclass(frozen=True, kw_only=True) below @register_router"
            )
        taken = _registered.get(name)
        if taken is not None or (name in _installed() and not _is_installed_as(router, name)):
            owner = taken.__module__ if taken is not None else _installed()[name].value
            raise UserError(
                f"router '{name}' of {router.__module__} is already registered by {owner}; "
                "choose another name"
            )
        router.name = name
        _registered[name] = router
        return router

    return register


def _installed() -> dict[str, EntryPoint]:
    """Return entry points by name, without loading them.

    Raises:
        UserError: two packages register the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in _points():
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise UserError(
                f"router '{point.name}' is registered by two installed packages ({other.value} and "
                f"{point.value}); uninstall one of them"
            )
        found[point.name] = point
    return found


def _points() -> list[EntryPoint]:
    """Return entry points of installed packages, and of this checkout if it is not installed."""
    found, project = list(entry_points(group=GROUP)), Path(__file__).parents[2] / "pyproject.toml"
    if any(point.module.startswith("modbench.routers.") for point in found) or not project.exists():
        return found
    own = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    return found + [EntryPoint(name, module, GROUP) for name, module in own.items()]


def _is_installed_as(router: type, name: str) -> bool:
    return _installed()[name].module == router.__module__


def installed_modules() -> dict[str, str]:
    """Return the module of each installed router by name, without loading any."""
    return {name: point.module for name, point in sorted(_installed().items())}


def router_names() -> list[str]:
    """Return all names: entry points (not loaded) and routers registered in this process."""
    return sorted({*_installed(), *_registered})


def router_class(name: str) -> "type[Router]":
    """Return the router registered as ``name``; load its package if needed.

    Raises:
        UserError: an unknown name, or a package that cannot be loaded or does not register it.
    """
    if name not in _registered:
        point = _installed().get(name)
        if point is None:
            raise UserError(f"router '{name}' is not known; {known_names(name, router_names())}")
        try:
            point.load()
        except UserError:
            raise
        except FAULTS as error:
            raise UserError(
                f"router '{name}': loading its entry point {point.value} raised "
                f"{type(error).__name__}: {error}; fix or uninstall that package"
            ) from error
        if name not in _registered:
            raise UserError(
                f"router '{name}': its entry point {point.value} does not register that name; "
                f"decorate the class with @register_router('{name}')"
            )
    return _registered[name]


def load_plugin(path: str | Path) -> list[str]:
    """Run a plugin file and return the names it registers. A file is loaded once per process.

    Raises:
        UserError: the file is missing, raises, or registers nothing.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UserError(f"plugin {path}: there is no such file; give the path of a Python file")
    module_name = f"modbench_plugin_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if module_name not in sys.modules:
        before = set(_registered)
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise UserError(f"plugin {path}: Python cannot import it; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
            digest = code_sha256(file)
        except FAULTS as error:
            del sys.modules[module_name]
            for name in _fresh(before):
                del _registered[name]
            if isinstance(error, UserError):
                raise UserError(f"plugin {path}: {error}") from error
            where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise UserError(
                f"plugin {path} raised {type(error).__name__}: {error}{where}; "
                "fix the file and run again"
            ) from error
        _sources.update(dict.fromkeys(_fresh(before), (file, digest)))
    names = sorted(n for n, router in _registered.items() if router.__module__ == module_name)
    if not names:
        raise UserError(
            f"plugin {path} registers no router; decorate a class with @register_router('name')"
        )
    return names


def _fresh(before: set[str]) -> set[str]:
    """Return the names that a plugin registered since ``before``, without installed routers that it
    imports."""
    installed = _installed()
    return {
        name
        for name in set(_registered) - before
        if name not in installed or not _is_installed_as(_registered[name], name)
    }


def check_source(router: Mapping[str, Any]) -> None:
    """Check that the plugin of a cell's ``router`` has not changed since the run began.

    Raises:
        UserError: it has changed.
    """
    name, digest = router["name"], router.get("plugin_sha256")
    if plugin_sha256(name) != digest:
        raise UserError(
            f"router '{name}': its plugin file, or its package, has changed since this run began; run "
            "the command again"
        )


def plugin_sha256(name: str) -> str | None:
    """Return the code hash of the plugin that registered ``name`` (see
    `modbench.routing.plugin_code.code_sha256`), or None for an installed router."""
    return _sources[name][1] if name in _sources else None


def plugin_file(name: str) -> Path | None:
    """Return the plugin file that registered ``name``, or None for an installed router. A process that
    runs this router loads no other plugin, which may have side effects."""
    return _sources[name][0] if name in _sources else None


def preset_options(name: str) -> tuple[str, dict[str, Any]]:
    """Return router name and options of ``NAME`` or ``NAME:PRESET``.

    Raises:
        UserError: an unknown router or preset.
    """
    router, colon, preset = name.partition(":")
    if not colon:
        return router, {}
    known = router_class(router).presets
    if preset not in known:
        raise UserError(f"router '{router}' has no preset '{preset}'; {known_names(preset, known)}")
    return router, dict(known[preset])


def build_router(name: str, options: Mapping[str, Any] | None = None) -> "Router":
    """Build the router ``name`` with checked ``options``.

    Raises:
        UserError: an unknown router or option, an option with a wrong type or out of range, or a missing
            required option.
    """
    options = dict(options or {})
    router = router_class(name)
    try:
        hints = get_type_hints(router)
    except FAULTS as error:
        raise UserError(
            f"router '{name}': the type of an option cannot be resolved ({type(error).__name__}: "
            f"{error}); import it at the top of the file"
        ) from error
    known = {field.name: field for field in fields(router) if field.init}  # type: ignore[arg-type]
    for option, value in options.items():
        if option not in known:
            raise UserError(f"router '{name}' has no option '{option}'; {known_names(option, known)}")
        options[option] = checked(f"router '{name}' option '{option}'", value, hints[option])
    missing = [
        option
        for option, field in known.items()
        if option not in options and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise UserError(
            f"router '{name}' needs option '{missing[0]}'; give it a value, in a suite under "
            "[[schemes]] options, or a default in its class"
        )
    try:
        built = router(**options)
        for option, value in built.options().items():
            _check_json(option, value)
        return built
    except UserError as error:
        raise UserError(f"router '{name}': {error}") from error
    except FAULTS as error:
        raise UserError(
            f"router '{name}' raised {type(error).__name__}: {error} when it was built; fix its "
            "__post_init__"
        ) from error


def _check_json(option: str, value: object) -> None:
    """
    Raises:
        UserError: ``value`` cannot be stored in a record, which is JSON.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"option '{option}' is {value!r}, and records are JSON; use finite numbers, strings, "
            "booleans, null, or lists or tables of them"
        ) from error
