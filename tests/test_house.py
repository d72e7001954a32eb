"""The shape of the house: which room may import which, and what an import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modbench

PACKAGE = Path(modbench.__file__).parent

#: From a room to the rooms whose files it may import. `flops.table` and `flops.gate` build models.
BELOW = {
    "flops": {"flops", "model"},
    "model": {"model", "flops"},
    "routers": {"model", "flops", "routers"},
    "train": {"train", "model", "flops"},
    "measure": {"measure", "plan", "train", "model", "flops"},
    "plan": {"plan", "flops", "model"},
    "report": {"report"},
    "sweep": {"sweep", "measure", "train", "model", "flops", "report"},
}
GROUND = {"errors", "metrics", "out_of_memory", "spread", "typed", "__version__"}


def imports_of(file: Path) -> set[str]:
    """The rooms and ground files of modbench that ``file`` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module]
                if node.module != "modbench"
                else [f"modbench.{n.name}" for n in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("modbench.")}
    return found


@pytest.mark.parametrize("room", BELOW)
def test_no_import_runs_up(room: str) -> None:
    for file in (PACKAGE / room).rglob("*.py"):
        up = imports_of(file) - BELOW[room] - GROUND
        assert not up, f"{file.relative_to(PACKAGE)} imports {up}"


def test_the_ledger_and_the_decoder_know_no_scheme() -> None:
    assert imports_of(PACKAGE / "flops" / "ledger.py") <= {"errors", "flops"}
    assert "routers" not in imports_of(PACKAGE / "model" / "decoder.py")


def test_no_file_is_two_rooms() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 400, file


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import modbench", ["torch", "numpy", "pandas", "seaborn", "lm_eval", "tyro"]),
        ("import modbench.cli", ["torch", "numpy", "pandas", "seaborn", "lm_eval"]),
        ("import modbench.model.registry as r; r.router_names()", ["torch", "numpy"]),
        ("import modbench.report.page, modbench.report.figures", ["torch", "lm_eval"]),
        ("import modbench.sweep.suite", ["torch", "pandas", "lm_eval"]),
        ("import modbench.sweep.cell", ["pandas", "seaborn", "lm_eval", "datasets", "tokenizers"]),
    ],
)
def test_an_import_loads_no_more_than_it_needs(code: str, absent: list[str]) -> None:
    code += f"; import sys; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
