"""SIGKILL of workers, of the sweep, or of both, at random moments: nothing is lost or double."""

import contextlib
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from small_suite import finished, modbench_says, start, write_suite


def run(place: Path, results: str) -> str:
    code, out = modbench_says(place, "run", "suite.toml", "--results", results)
    assert code == 0, out
    return out


def kill(process: "subprocess.Popen[str]", victims: str) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        sweep = psutil.Process(process.pid)
        workers = sweep.children() if victims != "sweep" else []
        for victim in [*([sweep] if victims != "worker" else []), *workers]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
    process.communicate(timeout=300)  # a sweep that lives records the failure and goes on


@pytest.mark.parametrize("rounds", [5, pytest.param(30, marks=pytest.mark.full)])
def test_kills_change_no_result(tmp_path: Path, rounds: int) -> None:
    write_suite(
        tmp_path,
        "kills",
        "vanilla",
        "mod",
        model={"width": 32, "layers": 2, "heads": 4},
        train={"sequence": 64, "batch": 4, "checkpoint_seconds": 0.05},
        measure={"heldout_tokens": 512, "curve_tokens": 256},
        sweep={"budgets": [2e10], "seeds": [0, 1]},
    )
    started = time.monotonic()
    run(tmp_path, "whole")
    long, draw = time.monotonic() - started, random.Random(rounds)
    folder = tmp_path / "parts" / "kills"
    for _ in range(rounds):
        before = finished(folder)
        process = start(tmp_path, "run", "suite.toml", "--results", "parts")
        time.sleep(draw.uniform(0.2, 0.8) * long)
        kill(process, draw.choice(["worker", "sweep", "both"]))
        assert finished(folder).items() >= before.items()
    run(tmp_path, "parts")
    assert finished(folder) == finished(tmp_path / "whole" / "kills")
    assert ": 4 of 4 runs done" in run(tmp_path, "parts")
    left = [path for path in folder.rglob("*") if path.suffix in (".half", ".part")]
    empty = [shard for shard in folder.glob("records/*.jsonl") if not shard.stat().st_size]
    assert left == empty == []
