"""What is said of what a router's own code raised."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import modbench
from modbench.report.store import read_suite
from modbench.sweep.crash import error_of

SUITE = """
[suite]
name = "raises"
[model]
width = 16
layers = 1
heads = 2
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
sequence = 16
batch = 1
[measure]
heldout_tokens = 16
curve_tokens = 16
downstream = []
[sweep]
budgets = [1e7]
[[schemes]]
router = "{name}"
"""
PLUGIN = """
import sys
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    def build_layer(self, model, layer):
        return Mean(model, layer)

class Mean(Block):
    def forward(self, x_BTD, context):
        {raises}
"""


@pytest.mark.parametrize(
    ("name", "raises", "said"),
    [
        ("raises_key", "raise KeyError('k')", "KeyError: 'k'"),
    ],
)
def test_what_a_routers_own_code_raises_is_told_as_its_own(
    name: str, raises: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "suite.toml").write_text(SUITE.format(name=name))
    (tmp_path / "text.txt").write_text("\n\n".join(f"one line and another, {n}." for n in range(200)))
    (tmp_path / "mine.py").write_text(PLUGIN.format(name=name, raises=raises))
    done = subprocess.run(
        [sys.executable, "-m", "modbench", "run", "suite.toml", "--plugin", "mine.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "MODBENCH_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(Path(modbench.__file__).parent.parent),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (record,) = read_suite(tmp_path / "results" / "raises").cells
    assert record.status == "failed"
    assert record.error == (f"router '{name}' raised {said} (mine.py, line 16); fix it and run again")


def test_a_sentence_of_ours_needs_no_exit_code(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("Traceback\nKeyError: 'k'\nmodbench: it is so\n")
    assert error_of(log, 0, 1) == "it is so"
    log.write_text("Traceback\nKeyError: 'k'\n")
    assert error_of(log, 0, 1) == "exit code 1: KeyError: 'k'"


def test_where_pytorch_raised_it_is_not_what_was_raised(tmp_path: Path) -> None:
    """PyTorch's own trace may follow the error's sentence, and looks like an error itself."""
    log = tmp_path / "log"
    log.write_text(
        'TypeError: randint() got "Overflow when unpacking long long\n'
        "Exception raised from THPUtils_unpackLong at /pytorch/numbers.h:79 (most recent call first):\n"
        "frame #0: c10::Error::Error(c10::SourceLocation)\n"
    )
    said = 'exit code 1: TypeError: randint() got "Overflow when unpacking long long'
    assert error_of(log, 0, 1) == said
