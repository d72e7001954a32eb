"""Messages about errors of a router's own code."""

from pathlib import Path

import pytest
from small_suite import modbench_says, write_suite

from modbench.records.store import read_suite
from modbench.sweep.process import error_of

PLUGIN = """
import sys
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("raises_key")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    def build_layer(self, model, layer):
        return Mean(model, layer)

class Mean(Block):
    def forward(self, x_BTD, context):
        raise KeyError('k')
"""


@pytest.mark.processes
def test_what_a_routers_own_code_raises_is_told_as_its_own(tmp_path: Path) -> None:
    write_suite(tmp_path, "raises", "raises_key")
    (tmp_path / "mine.py").write_text(PLUGIN)
    code, out = modbench_says(tmp_path, "run", "suite.toml", "--plugin", "mine.py")
    assert code == 2, out
    (record,) = read_suite(tmp_path / "my-results" / "raises").runs
    assert record.status == "failed"
    said = "KeyError: 'k' (mine.py, line 16); fix it and run again"
    assert record.error == f"router 'raises_key' raised {said}"


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
