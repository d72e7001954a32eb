"""Tools run by hand or by nox; what they import must still exist."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
SCRIPTS = [*TOOLS.glob("*.py"), *TOOLS.glob("perf/*.py")]
NAMES = sorted(script.stem for script in SCRIPTS if script.stem != "conftest")


@pytest.mark.parametrize("name", NAMES)
def test_tool_can_be_imported(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(TOOLS / "perf")
    importlib.import_module(name)


def test_tools_are_found() -> None:
    assert "bench_steps" in NAMES
