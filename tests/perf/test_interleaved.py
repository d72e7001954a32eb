"""Ways are timed in turns, on the same input, when the GPU is done; what misses its target is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_gpu
import interleaved
import pytest
import torch
from interleaved import WARM_UP, InTurns, Turns
from targets import Reach

from modbench.model.config import ModelConfig

pytestmark = pytest.mark.full

HERE = Path(__file__).parent


class Pedantic:
    """As much of pytest-benchmark's fixture as turns need."""

    def __init__(self) -> None:
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target: Any, setup: Any, rounds: int, iterations: int) -> None:
        assert iterations == 1
        for _ in range(rounds):
            args, kwargs = setup()
            target(*args, **kwargs)
            self.stats.stats.data.append(2.0)


def test_ways_take_turns_on_what_each_turn_draws() -> None:
    called: list[tuple[str, int]] = []
    numbers = iter(range(100))
    ways = {name: lambda number, name=name: called.append((name, number)) for name in "abc"}
    in_turns = InTurns(Pedantic(), seconds=0.0, turns=3)  # type: ignore[arg-type]
    turns = in_turns(ways, lambda: (next(numbers),))
    timed = called[3 * WARM_UP :]
    assert timed == [(name, WARM_UP + turn) for turn in range(3) for name in "bca"]
    assert len(turns) == 3
    assert {name: len(seconds) for name, seconds in turns.seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_what_comes_before_each_way_comes_before_every_one() -> None:
    called: list[str] = []
    ways = {name: lambda name=name: called.append(name) for name in "abc"}
    in_turns = InTurns(Pedantic(), seconds=0.0, turns=2)  # type: ignore[arg-type]
    in_turns(ways, before=lambda: called.append("-"))
    assert "".join(called) == WARM_UP * "-a-b-c" + 2 * "-b-c-a"


def test_turns_are_as_many_as_the_seconds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 2))  # each look takes two seconds
    monkeypatch.setattr(interleaved, "now", lambda: next(clock))
    in_turns = InTurns(Pedantic(), seconds=10.0, turns=3)  # type: ignore[arg-type]
    turns = in_turns({"a": lambda: None, "b": lambda: None})
    assert len(turns) == 5
    assert turns.seconds["b"] == [2] * 5


def test_a_longer_run_warms_up_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 2))  # each look takes two seconds
    monkeypatch.setattr(interleaved, "now", lambda: next(clock))
    called: list[str] = []
    in_turns = InTurns(Pedantic(), seconds=40.0, turns=1)  # type: ignore[arg-type]
    turns = in_turns({"a": lambda: called.append("a")})
    assert len(turns) == 20
    assert len(called) == 20 + WARM_UP + 3


@pytest.mark.parametrize(("others", "loaded"), [(0.1, False), (1.5, True)])
def test_other_work_meanwhile_is_noticed(
    others: float | None, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"others": others, "threads": 2, "cores": 2}
    monkeypatch.setattr(interleaved.LoadMonitor, "state", lambda self, threads: state)
    in_turns = InTurns(Pedantic(), seconds=0.0, turns=1)  # type: ignore[arg-type]
    in_turns({"a": lambda: None})
    assert in_turns.loaded == loaded


def test_ratios_are_of_neighbours() -> None:
    turns = Turns(seconds={"a": [1.0, 4.0, 9.0], "b": [2.0, 2.0, 3.0]})
    assert turns.ratios("a", "b") == [0.5, 2.0, 3.0]
    assert turns.median("a") == 4.0


def test_the_timer_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    interleaved.now()
    assert not waited
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    interleaved.now()
    assert waited


def test_a_target_is_missed_beyond_its_bound_alone() -> None:
    reach = Reach()
    reach("most", 1.1, 1.1, "x")
    reach.at_least("least", [60.0, 65.0, 90.0], 65, "%")
    reach.shown("shown", 1e9, "x")
    assert reach.missed() == ""
    reach("above", [1.0, 1.2, 1.2], 1.1, "x")
    reach.at_least("below", 64.9, 65, "%")
    reach("no number", float("nan"), 1.1, "x")
    assert reach.missed() == (
        "above: 1.2 x, at most 1.1 was asked; below: 64.9 %, at least 65 was asked; "
        "no number: nan x, at most 1.1 was asked"
    )


@pytest.mark.parametrize(
    ("benchmark_of", "unit"),
    [
        (bench_gpu.test_dense_against_the_gemm_ceiling, "%"),
        (bench_gpu.test_mixture_of_depths_against_dense, "x"),
        (bench_gpu.test_token_choice_against_dense, "x"),
    ],
)
def test_what_a_gpu_is_asked_runs_without_one(
    benchmark_of: Any, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small model: these benchmarks are skipped where there is no GPU."""
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=2)
    monkeypatch.setattr(bench_gpu, "device", lambda: torch.device("cpu"))
    for name, value in {"SHAPE": shape, "TOKENS": 16, "SEQUENCES": 2}.items():
        monkeypatch.setattr(bench_gpu, name, value)
    reach = Reach()
    benchmark_of(InTurns(Pedantic(), seconds=0.0, turns=1), reach)  # type: ignore[arg-type]
    (target,) = reach.targets
    assert target.unit == unit
    assert target.figure > 0


BENCH = """
def test_slow(in_turns, reach):
    turns = in_turns({"one": lambda: None, "other": lambda: None})
    reach("one over other", [3.0, 4.0, 5.0], 1.5, "x")
    reach.at_least("speed", 2.0, 1.0, "x")
"""


def test_a_missed_target_fails_the_run_and_is_named(tmp_path: Path) -> None:
    for name in ("conftest.py", "interleaved.py", "targets.py"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "bench_slow.py").write_text(BENCH)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    words = ["--perf-seconds=0.01", "--perf-turns=2", "--benchmark-json=all.json", "--benchmark-save=it"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "bench_slow.py", "--benchmark-only", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "one over other: 4 x, at most 1.5 was asked" in done.stdout
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "MISSED 4 x [3.5 to 4.5] at most 1.5 one over other" in shown
    assert "reached 2 x at least 1 speed" in shown
    assert "1 of 2 targets reached" in shown

    found = json.loads((tmp_path / "all.json").read_text())
    assert found["benchmarks"][0]["options"]["timer"] == "now"
    assert found["machine_info"]["threads"] == 2
    assert "node" not in found["machine_info"]
    (kept,) = (tmp_path / ".benchmarks").rglob("*_it.json")
    folder = kept.relative_to(tmp_path / ".benchmarks").parts[0]
    assert f"{found['machine_info']['cores']}-cores" in folder
