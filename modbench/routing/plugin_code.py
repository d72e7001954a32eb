"""What a plugin's code is: its file, and the files of its author's that it imports. Imports no torch."""

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_PACKAGES = {"site-packages", "dist-packages"}
_OURS = Path(__file__).resolve().parent.parent


def code_sha256(file: Path, module: str) -> str:
    """Hash of the plugin ``file``, which was loaded as ``module``. With it of the modules that it
    imports, and those import, which are neither Python's nor installed nor ours: by what their
    ``import`` statements name, in whatever order plugins are loaded, and whether such a statement has
    run yet or not. A plugin of one file has the hash of that file."""
    files: dict[str, Path] = {}
    _collect(module, file, files)
    own = hashlib.sha256(file.read_bytes()).hexdigest()
    others = {name: path for name, path in files.items() if path != file}
    if not others:
        return own
    lines = [f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in others.items()]
    return hashlib.sha256("\n".join([own, *sorted(lines)]).encode()).hexdigest()


def guessed_sha256(file: Path) -> str:
    """`code_sha256` of the plugin ``file`` without loading it, as far as its modules lie beside it or
    where Python looks already: a plugin may say only when it runs where others are."""
    file = file.resolve()
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        return code_sha256(file, "modbench_plugin")
    finally:
        sys.path.remove(folder)


def _collect(module: str, file: Path, files: dict[str, Path]) -> None:
    files[module] = file
    for name in _imports(file, module):
        path = _file_of(name)
        if name not in files and path is not None:
            _collect(name, path, files)


def _imports(file: Path, module: str) -> Iterator[str]:
    """The names of modules that ``file`` may import, each with the packages it lies in."""
    package = getattr(sys.modules.get(module), "__package__", None)
    if not package:
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # of a module that no import has run yet
        return
    for node in ast.walk(tree):
        named: list[str] = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                if not package:
                    continue
                base = importlib.util.resolve_name("." * node.level + base, package)
            named = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in named:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _file_of(name: str) -> Path | None:
    """The file of the module ``name``, loaded or not, if it is the author's own."""
    if name in sys.modules:
        found = getattr(sys.modules[name], "__file__", None)
    else:
        found = getattr(_spec(name), "origin", None)
    if found is None:
        return None
    path = Path(found).resolve()
    return path if is_authors(path) else None


def _spec(name: str) -> ModuleSpec | None:
    """Where the module ``name`` would be found. Not by `importlib.util.find_spec`, which imports the
    packages that it lies in."""
    package, _, _ = name.rpartition(".")
    folders = _folders(package) if package else None
    if package and folders is None:
        return None
    found = (finder.find_spec(name, folders) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)


def _folders(package: str) -> Sequence[str] | None:
    """Those in which the modules of ``package`` lie; None if it is none."""
    if package in sys.modules:
        return getattr(sys.modules[package], "__path__", None)
    return getattr(_spec(package), "submodule_search_locations", None)


def is_authors(path: Path) -> bool:
    """Whether ``path`` is a Python file that is neither Python's nor installed nor ours."""
    if path.suffix != ".py" or not path.is_file() or _PACKAGES & set(path.parts):
        return False
    folders = [Path(sysconfig.get_path(kind)).resolve() for kind in _INSTALLED]
    return not any(path.is_relative_to(folder) for folder in [*folders, _OURS])
