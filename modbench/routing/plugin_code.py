"""The hash of a plugin's code. Imports no torch."""

import hashlib
from pathlib import Path


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
