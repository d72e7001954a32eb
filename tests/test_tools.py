"""Tools run by hand or by nox; what they import must still exist."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
SCRIPTS = [*TOOLS.glob("*.py"), *TOOLS.glob("perf/*.py")]
NAMES = sorted(script.stem for script in SCRIPTS if script.stem != "conftest")


def test_every_tool_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS / "perf")
    for name in NAMES:
        importlib.import_module(name)
    assert "bench_steps" in NAMES
