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
    """Of a cell whose router is a plugin's, with ``forward`` in its forward pass."""
    plugin = folder / f"{name}.py"
    plugin.write_text(PLUGIN.format(name=name, forward=forward))
    digest = sha256(plugin.read_bytes()).hexdigest()
    cell = {
        "router": {"name": name, "options": {}, "plugin_sha256": digest},
        "model": asdict(ModelConfig(vocabulary=97, width=16, layers=1, heads=2)),
        "train": asdict(TrainConfig(budget=1, sequence=16, batch=1)),
    }
    return {"cell": cell, "plugins": [os.fspath(plugin)]}


def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process dies of SIGKILL, with a last word that is none."""
    ended = subprocess.CompletedProcess([], -signal.SIGKILL, "", "a warning")
    monkeypatch.setattr(memory, "_child", lambda *_: ended)


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


def test_a_process_that_another_signal_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], -signal.SIGSEGV, "", "Fatal Python error")
    monkeypatch.setattr(memory, "_child", lambda *_: ended)
    with pytest.raises(RuntimeError, match=r"^measuring memory failed with exit code -11: Fatal"):
        memory.peak_memory({"cell": {}, "plugins": []}, 1)


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
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        memory.peak_memory(spec_of("large_in_steps", forward, tmp_path), 1)
    failed = failed_allocation(raised.value)
    if said == "shapes differ":
        assert failed is None
        assert str(raised.value).endswith("exit code 1: RuntimeError: shapes differ")
    else:
        assert str(failed) == f"measuring memory: {said}"
        assert asked_bytes(str(failed)) == asked


def test_a_router_may_print_while_its_memory_is_measured(tmp_path: Path) -> None:
    forward = "import os; print('a'); os.write(1, b'b'); return super().forward(x_BTD, context)"
    found = memory.peak_memory(spec_of("prints_in_steps", forward, tmp_path), 1)
    assert found["median"] >= 0


def test_what_a_router_forks_is_not_waited_for(tmp_path: Path) -> None:
    sleeper, awake = tmp_path / "sleeper", tmp_path / "awake"
    forks = f"""
        import os, time
        from pathlib import Path
        if not Path({os.fspath(sleeper)!r}).exists():
            child = os.fork()
            if child == 0:
                time.sleep(60)
                Path({os.fspath(awake)!r}).touch()
                os._exit(0)
            Path({os.fspath(sleeper)!r}).write_text(str(child))
        return super().forward(x_BTD, context)
"""
    assert memory.peak_memory(spec_of("forks", forks, tmp_path), 1)["median"] > 0
    assert not awake.exists()
    os.kill(int(sleeper.read_text()), signal.SIGKILL)
