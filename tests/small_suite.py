"""A small suite on a small text, and `modbench` in a process of its own."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from inline import InlineProcess, modbench_inline

import modbench
from modbench.records.store import read_suite
from modbench.sweep import process

DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"width": 16, "layers": 1, "heads": 2},
    "data": {"source": "text", "path": "text.txt", "tokenizer": "bytes"},
    "train": {"sequence": 16, "batch": 1},
    "measure": {"steps": ["train", "heldout"], "heldout_tokens": 16, "curve_tokens": 16},
    "sweep": {"budgets": [1e7]},
}
TEXT = "\n\n".join(f"one line and another, {n}." for n in range(400))


def suite_text(name: str, *routers: str, **tables: dict[str, Any]) -> str:
    """A suite of ``routers``, with entries of ``tables`` in place of `DEFAULTS`; None leaves one
    out."""
    lines = [f'[suite]\nname = "{name}"']
    for table in {**DEFAULTS, **tables}:
        lines.append(f"[{table}]")
        entries = DEFAULTS.get(table, {}) | tables.get(table, {})
        given = {key: value for key, value in entries.items() if value is not None}
        lines += [f"{key} = {_toml(value)}" for key, value in given.items()]
    lines += [f'[[schemes]]\nrouter = "{router}"' for router in routers]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
    return json.dumps(value)


def write_suite(place: Path, name: str, *routers: str, **tables: dict[str, Any]) -> None:
    """Write suite.toml and its text into ``place``."""
    (place / "suite.toml").write_text(suite_text(name, *routers, **tables))
    (place / "text.txt").write_text(TEXT)


def install(folder: Path, package: str, code: str) -> None:
    """Write a package with ``code`` and the entry point of its router ``package`` into ``folder``, as
    pip does in site-packages."""
    (folder / package).mkdir(parents=True, exist_ok=True)
    (folder / package / "__init__.py").write_text(code)
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[modbench.routers]\n{package} = {package}\n")


def start(place: Path, *words: str) -> "subprocess.Popen[str]":
    """`modbench WORDS` in ``place``, with both outputs in one pipe and a process group of its own."""
    path = [str(Path(modbench.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    places = {"MODBENCH_CACHE": str(place / "cache"), "PYTHONPATH": os.pathsep.join(filter(None, path))}
    return subprocess.Popen(
        [sys.executable, "-m", "modbench", *words],
        cwd=place,
        env={**os.environ, **places},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,  # as a shell starts it
    )


def modbench_says(place: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of `modbench WORDS` in ``place``, in this process; in tests marked
    ``processes`` in one of its own."""
    if process.Process is InlineProcess:
        return modbench_inline(place, *words)
    command = start(place, *words)
    out, _ = command.communicate(timeout=900)  # the longest has 20 runs
    return command.returncode, out


def finished(folder: Path) -> dict[str, Any]:
    """The finished runs and measurements by key: all but seconds and the moment."""
    records = read_suite(folder)
    found = [one for one in (*records.runs, *records.measurements) if one.status == "ok"]
    assert max(Counter(record.key for record in found).values(), default=1) == 1
    runs = {one.key: (one.metrics, one.curve, one.ends) for one in records.runs if one.status == "ok"}
    return runs | {one.key: one.result for one in records.measurements if one.status == "ok"}
