"""`modbench run --engine inline`: jobs in the command's own process."""

from pathlib import Path

import pytest
from small_suite import finished, modbench_says, start, write_suite

pytestmark = pytest.mark.processes

TWO = {"width": 16, "layers": 2, "heads": 2}
PLUGIN = """
import os
from dataclasses import dataclass

from modbench import DepthRouter, register_router


@register_router("mine")
@dataclass(frozen=True, kw_only=True)
class Mine(DepthRouter):
    fails: bool = False

    def gate(self, scores_BT):
        open("pids.txt", "a").write(f"{os.getpid()} ")
        if self.fails:
            raise KeyError("k")
        return scores_BT
"""


def test_code_of_routers_runs_in_the_command_and_gives_the_same_records(tmp_path: Path) -> None:
    write_suite(tmp_path, "small", "mine", model=TWO, sweep={"budgets": [1e7], "seeds": [0, 1]})
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = ("run", "suite.toml", "--plugin", "mine.py", "--results")
    assert modbench_says(tmp_path, *words, "apart")[0] == 0
    (tmp_path / "pids.txt").unlink()
    command = start(tmp_path, *words, "here", "--engine", "inline")
    out, _ = command.communicate(timeout=300)
    assert command.returncode == 0, out
    assert str(command.pid) in (tmp_path / "pids.txt").read_text().split()
    assert finished(tmp_path / "here" / "small") == finished(tmp_path / "apart" / "small")


def test_a_mistake_of_a_router_is_recorded_and_the_next_row_runs(tmp_path: Path) -> None:
    write_suite(tmp_path, "small", "mine", "vanilla", model=TWO)
    (tmp_path / "mine.py").write_text(PLUGIN.replace("fails: bool = False", "fails: bool = True"))
    words = ("run", "suite.toml", "--plugin", "mine.py", "--engine", "inline", "--results", "here")
    code, out = modbench_says(tmp_path, *words)
    assert code == 2, out
    assert "router 'mine' raised KeyError" in out
    assert len(finished(tmp_path / "here" / "small")) == 2
