"""The process that measures a cell's peak memory, and how it can fail."""

import os
import signal
import subprocess
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from modbench.errors import UserError
from modbench.measure import memory
from modbench.measure.memory import MEMORY_ENV
from modbench.model.config import ModelConfig
from modbench.train.config import TrainConfig
from modbench.train.out_of_memory import asked_bytes, failed_allocation

PLUGIN = """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    def build_layer(self, model, layer):
        return Odd(model, layer)

class Odd(Block):
    def forward(self, x_BTD, context):
        {forward}
"""


def spec_of(name: str, forward: str, folder: Path) -> dict[str, Any]:
    """A cell whose router is a plugin with ``forward`` in its forward pass."""
    plugin = folder / f"{name}.py"
    plugin.write_text(PLUGIN.format(name=name, forward=forward))
    digest = sha256(plugin.read_bytes()).hexdigest()
    cell = {
        "router": {"name": name, "options": {}, "plugin_sha256": digest},
        "model": asdict(ModelConfig(vocabulary=97, width=16, layers=1, heads=2)),
        "train": asdict(TrainConfig(budget=1, sequence=16, batch=1)),
    }
    return {"cell": cell, "plugins": [os.fspath(plugin)]}


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (-signal.SIGKILL, memory.KilledError, "^measuring memory$"),
        (-signal.SIGSEGV, RuntimeError, "^measuring memory failed with exit code -11: Fatal"),
    ],
)
def test_a_killed_process_is_told_from_a_crashed_one(
    code: int, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.CompletedProcess([], code, "", "Fatal Python error")
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(error, match=words):
        memory.peak_memory({"cell": {}, "plugins": []}, 1)


def test_the_measured_process_frees_buffers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "99")
    seen: dict[str, str] = {}

    def run(*_: Any, env: dict[str, str], **__: Any) -> subprocess.CompletedProcess[str]:
        seen.update(env)
        return subprocess.CompletedProcess([], 0, '{"status": "ok", "measured": {"peak": 5}}', "")

    monkeypatch.setattr(memory.subprocess, "run", run)
    found = memory.peak_memory({"cell": {}, "plugins": []}, 3)
    assert found == {"median": 5, "iqr": None, "n": 1, "stable": None}
    assert seen.items() >= MEMORY_ENV.items()
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("CUDA error: out of memory\nKernel errors might be reported later.", None),
        ("you tried to allocate 12 bytes. Error code 12\nand more of it", 12),
        ("shapes differ", None),
    ],
)
def test_a_process_that_ran_out_of_memory_says_so(said: str, asked: int | None, tmp_path: Path) -> None:
    forward = f"raise RuntimeError({said!r})"
    with pytest.raises((MemoryError, UserError)) as raised:
        memory.peak_memory(spec_of("large_in_steps", forward, tmp_path), 1)
    failed = failed_allocation(raised.value)
    if said == "shapes differ":
        assert failed is None
        assert str(raised.value) == (
            "router 'large_in_steps' raised RuntimeError: shapes differ (large_in_steps.py, line 15); "
            "fix it (while memory was measured)"
        )
    else:
        assert str(failed).startswith("measuring memory")
        assert asked_bytes(str(failed)) == asked


def test_a_router_may_print_while_its_memory_is_measured(tmp_path: Path) -> None:
    forward = "import os; print('a'); os.write(1, b'b'); return super().forward(x_BTD, context)"
    found = memory.peak_memory(spec_of("prints_in_steps", forward, tmp_path), 1)
    assert found["median"] >= 0
