"""Why a process in which a cell's memory is measured came to nothing."""

import os
import signal
import subprocess
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from modbench.measure import memory
from modbench.model.config import ModelConfig
from modbench.out_of_memory import asked_bytes, failed_allocation
from modbench.train.config import TrainConfig

PLUGIN = """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.model.registry import register_router
from modbench.model.router import Router

@register_router("large_in_steps")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    def build_layer(self, model, layer):
        return Large(model, layer)

class Large(Block):
    def forward(self, x_BTD, context):
        raise RuntimeError({said!r})
"""


def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process dies of SIGKILL, with a last word that is none."""
    ended = subprocess.CompletedProcess([], -signal.SIGKILL, "", "a warning")
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: ended)


def test_a_kill_by_the_kernel_is_want_of_memory_and_one_by_hand_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed(monkeypatch)
    kills = iter((3, 3, 3, 4))
    monkeypatch.setattr(memory, "out_of_memory_kills", lambda: next(kills))
    spec: dict[str, Any] = {"cell": {}, "plugins": []}
    words = "^measuring memory: killed by SIGKILL, by hand or for want of memory$"
    with pytest.raises(RuntimeError, match=words):
        memory.peak_memory(spec, 1)
    with pytest.raises(memory.KilledError, match="measuring memory"):
        memory.peak_memory(spec, 1)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("CUDA error: out of memory\nKernel errors might be reported later.", None),
        ("you tried to allocate 12 bytes. Error code 12\nand more of it", 12),
        ("shapes differ", None),
    ],
)
def test_a_process_that_ran_out_of_memory_says_so(said: str, asked: int | None, tmp_path: Path) -> None:
    plugin = tmp_path / "large_in_steps.py"
    plugin.write_text(PLUGIN.format(said=said))
    digest = sha256(plugin.read_bytes()).hexdigest()
    cell = {
        "router": {"name": "large_in_steps", "options": {}, "plugin_sha256": digest},
        "model": asdict(ModelConfig(vocabulary=97, width=16, layers=1, heads=2)),
        "train": asdict(TrainConfig(budget=1, sequence=16, batch=1)),
    }
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        memory.peak_memory({"cell": cell, "plugins": [os.fspath(plugin)]}, 1)
    failed = failed_allocation(raised.value)
    if said == "shapes differ":
        assert failed is None
        assert str(raised.value).endswith("exit code 1: RuntimeError: shapes differ")
    else:
        assert str(failed) == f"measuring memory: {said}"
        assert asked_bytes(str(failed)) == asked
