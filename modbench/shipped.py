"""Suites that are part of modbench, and their committed results."""

from pathlib import Path

import modbench


def shipped_suites() -> dict[str, Path]:
    """The suites shipped with modbench, by name: package data in a wheel, suites/ in a checkout."""
    package = Path(modbench.__file__).parent
    folder = package / "suites"
    if not folder.is_dir():
        folder = package.parent / "suites"
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def committed_results(suite: str) -> Path | None:
    """The folder of the committed results of ``suite``, which a wheel has of small suites only."""
    package = Path(modbench.__file__).parent
    folders = (package / "committed" / suite, package.parent / "results" / suite)
    return next((folder for folder in folders if (folder / "records").is_dir()), None)
