"""The hash of a plugin's code, and which files belong to a plugin's author. Imports no torch."""

import hashlib
import sysconfig
from pathlib import Path

_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_PACKAGES = {"site-packages", "dist-packages"}
_OURS = Path(__file__).resolve().parent.parent


def code_sha256(file: Path) -> str:
    """Return the SHA-256 of the plugin ``file``. For a file in a package (a folder with an
    ``__init__.py``), return one hash of all Python files of the outermost package."""
    package = None
    for folder in file.resolve().parents:
        if not (folder / "__init__.py").exists():
            break
        package = folder
    if package is None:
        return _sha256(file)
    lines = [f"{path.relative_to(package)} {_sha256(path)}" for path in sorted(package.rglob("*.py"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def is_authors(path: Path) -> bool:
    """Return True for a Python file outside Python's library, installed packages and modbench."""
    if path.suffix != ".py" or not path.is_file() or _PACKAGES & set(path.parts):
        return False
    folders = [Path(sysconfig.get_path(kind)).resolve() for kind in _INSTALLED]
    return not any(path.is_relative_to(folder) for folder in [*folders, _OURS])
