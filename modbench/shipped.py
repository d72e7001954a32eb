"""Suites that are part of modbench."""

from pathlib import Path

import modbench


def shipped_suites() -> dict[str, Path]:
    """The suites shipped with modbench, by name: package data in a wheel, suites/ in a checkout."""
    package = Path(modbench.__file__).parent
    folder = package / "suites"
    if not folder.is_dir():
        folder = package.parent / "suites"
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}
