"""Finds routers by decorator, entry point and plugin file. Imports no torch by itself."""

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modbench.errors import FAULTS, UserError, is_file, known_names
from modbench.routing.plugin_fault import at, authors_code, raised

if TYPE_CHECKING:
    from modbench.routing.router import Router

GROUP = "modbench.routers"
#: Start of the module name of a plugin file.
_PLUGIN = "modbench_plugin_"
_registered: "dict[str, type[Router]]" = {}
#: File and code hash of each router that a plugin file registered.
_sources: dict[str, tuple[Path, str]] = {}
R = TypeVar("R", bound="type[Router]")


def register_router(name: str) -> Callable[[R], R]:
    """Register the decorated dataclass under ``name``. Raise a `UserError` if the name is taken, or see
    `modbench.routing.hook_checks.check_declaration`."""

    def register(router: R) -> R:
        from modbench.routing.hook_checks import check_declaration

        check_declaration(name, router)
        owner = _registered[name].__module__ if name in _registered else installed_modules().get(name)
        if name in _registered or owner not in (None, router.__module__):
            raise UserError(
                f"router '{name}' of {_file_or_module(router.__module__)} is already registered by "
                f"{_file_or_module(owner)}; choose another name"
            )
        router.name = name
        _registered[name] = router
        return router

    return register


def _file_or_module(module: str | None) -> str:
    """Return the plugin file of ``module``, or its name if it is no plugin file's."""
    if module is None or not module.startswith(_PLUGIN):
        return str(module)
    return os.path.relpath(str(sys.modules[module].__file__))


def installed_modules() -> dict[str, str]:
    """Return the module of each installed router by name, without loading any. Of several packages with
    the same name modbench's own comes first."""
    return {name: modules[0] for name, modules in _entry_points().items()}


def _entry_points() -> dict[str, list[str]]:
    """Return the modules that installed packages name for each router: one, unless names clash."""
    modules: dict[str, list[str]] = {}
    points = sorted(entry_points(group=GROUP))
    for point in sorted(points, key=lambda point: not point.value.startswith("modbench.")):
        module = point.value.partition(":")[0].strip()  # point.module raises for a name with a hyphen
        if module not in modules.setdefault(point.name, []):
            modules[point.name].append(module)
    return modules


def router_names() -> list[str]:
    """Return all names: entry points (not loaded) and routers registered in this process."""
    return sorted({*installed_modules(), *_registered})


def router_class(name: str) -> "type[Router]":
    """Return the router registered as ``name``; load its package if needed. Raise a `UserError` for an
    unknown name, one that several packages use, or a package that cannot be imported or does not
    register it."""
    if name not in _registered:
        module, *others = _entry_points().get(name, [None])
        if module is None:
            raise UserError(
                f"router '{name}' is not known; {known_names(name, router_names())}; a file of your own "
                "is given with --plugin, or to `modbench check`"
            )
        if others:
            owners = " and ".join([module, *others])
            raise UserError(
                f"router '{name}': {owners} are entry points with this name; uninstall a package, or "
                "rename its entry point"
            )
        try:
            importlib.import_module(module)
        except UserError:
            raise
        except FAULTS as error:
            what = raised(error, f"the import of {module}", "fix or uninstall it")
            raise UserError(f"router '{name}': its package {what}") from error
        if name not in _registered:
            raise UserError(
                f"router '{name}': its entry point {module} does not register that name; "
                f"decorate the class with @register_router('{name}')"
            )
    return _registered[name]


def load_plugin(path: str | Path) -> list[str]:
    """Run a plugin file and return the names it registers. A file is loaded once per process. Raise a
    `UserError` if it is missing, raises, or registers nothing."""
    file = Path(path).resolve()
    if not is_file(file):
        raise UserError(f"plugin {path}: there is no such file; give the path of a Python file")
    module_name = f"{_PLUGIN}{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if module_name not in sys.modules:
        before = {*_registered, *installed_modules()}
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise UserError(f"plugin {path}: Python cannot import it; its name must end in .py")
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except FAULTS as error:
            del sys.modules[module_name]
            for name in set(_registered) - before:
                del _registered[name]
            fault = f" {raised(error)}"
            if isinstance(error, UserError):  # one on a method names its line
                fault = f": {error}" + ("" if ", line " in str(error) else at(error))
            raise UserError(f"plugin {path}{fault}") from error
        digest = code_sha256(file)
        _sources.update(dict.fromkeys(set(_registered) - before, (file, digest)))
    names = sorted(n for n, router in _registered.items() if router.__module__ == module_name)
    if not names:
        raise UserError(
            f"plugin {path} registers no router; put @register_router('name') above a class that "
            "derives from DepthRouter, ExpertRouter or Router"
        )
    return names


def code_sha256(file: Path) -> str:
    """Return the SHA-256 of the plugin ``file``. For a file in a package (a folder with an
    ``__init__.py``), return one hash of all Python files of the outermost package."""
    if (package := package_of(file)) is None:
        return _sha256(file)
    lines = [f"{path.relative_to(package)} {_sha256(path)}" for path in sorted(package.rglob("*.py"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def package_of(file: Path) -> Path | None:
    """Return the outermost package that ``file`` is in (folders with an ``__init__.py``), or None."""
    package = None
    for folder in file.resolve().parents:
        if not (folder / "__init__.py").exists():
            break
        package = folder
    return package


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_source(name: str, digest: str | None) -> None:
    """Check that the code of router ``name`` still has the hash ``digest``, which it had when the
    command began. Raise a `UserError` if it has changed."""
    if plugin_sha256(name) != digest:
        raise UserError(
            f"router '{name}': its plugin file, or its package, has changed since this command began; "
            "run it again"
        )


def plugin_sha256(name: str) -> str | None:
    """Return the hash of the code of the router ``name`` (`code_sha256`): of its plugin file, or of its
    installed package; None for a router of modbench, or an unknown one. A package is hashed once per
    process, after its import. Raise a `UserError` if it can't be imported."""
    if name in _sources:
        return _sources[name][1]
    return _package_sha256(name) if name in foreign_routers() else None


@cache
def _package_sha256(name: str) -> str:
    return code_sha256(Path(inspect.getfile(router_class(name))))


def foreign_routers() -> list[str]:
    """Return the names of installed routers that are not modbench's own alone, without loading any."""
    return [
        name
        for name, modules in _entry_points().items()
        if not all(module.startswith("modbench.") for module in modules)
    ]


def plugin_file(name: str) -> Path | None:
    """Return the plugin file that registered ``name``, or None for an installed router. A process that
    runs this router loads no other plugin, which may have side effects."""
    return _sources[name][0] if name in _sources else None


def loaded_plugins() -> list[Path]:
    """Return the plugin files that this process has loaded, in that order: one may build on another."""
    return list(dict.fromkeys(file for file, _ in _sources.values()))


def preset_options(name: str) -> tuple[str, dict[str, Any]]:
    """Return router name and options of ``NAME`` or ``NAME:PRESET``. Raise a `UserError` if one of them
    is unknown."""
    router, colon, preset = name.partition(":")
    if not colon:
        return router, {}
    known = router_class(router).presets
    if preset not in known:
        raise UserError(f"router '{router}' has no preset '{preset}'; {known_names(preset, known)}")
    return router, dict(known[preset])


def build_router(name: str, options: Mapping[str, Any] | None = None) -> "Router":
    """Build the router ``name`` with checked ``options``. Raise a `UserError` for an unknown router, or
    an unknown, wrong or missing option."""
    router = router_class(name)
    with authors_code(router, "its construction"):
        from modbench.typed import built  # loads pydantic

        instance: Router = built(f"router '{name}'", options or {}, router)
    return instance
