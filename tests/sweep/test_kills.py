"""SIGKILL of workers, of the sweep, or of both, in training: nothing is lost or double; an interrupt
ends a command whose plugin hangs."""

import contextlib
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from inline import inline_workers
from small_suite import finished, modbench_says, start, write_suite

pytestmark = pytest.mark.processes


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


@pytest.mark.parametrize("rounds", [1, pytest.param(30, marks=pytest.mark.full)])
def test_kills_change_no_result(tmp_path: Path, rounds: int) -> None:
    write_suite(
        tmp_path,
        "kills",
        "vanilla",
        "mod",
        model={"width": 32, "layers": 2, "heads": 4},
        train={"sequence": 64, "batch": 4, "checkpoint_seconds": 0.05},
        measure={"heldout_tokens": 512, "curve_tokens": 256, "routing_points": [0, 0.5, 1]},
        sweep={"budgets": [5e9], "seeds": [0, 1]},
    )
    with inline_workers():
        run(tmp_path, "whole")
    draw = random.Random(rounds)
    folder = tmp_path / "parts" / "kills"
    for _ in range(rounds):
        before = finished(folder)
        process = start(tmp_path, "run", "suite.toml", "--results", "parts")
        while process.poll() is None and not list(folder.glob("runs/*/*.pt")):
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 1))
        kill(process, draw.choice(["worker", "sweep", "both"]))
        assert finished(folder).items() >= before.items()
    with inline_workers():
        run(tmp_path, "parts")
    assert finished(folder) == finished(tmp_path / "whole" / "kills")
    left = [path for path in folder.rglob("*") if path.suffix in (".half", ".part")]
    empty = [shard for shard in folder.glob("records/*.jsonl") if not shard.stat().st_size]
    assert left == empty == []


def test_one_interrupt_ends_a_run_whose_plugin_hangs_at_import(tmp_path: Path) -> None:
    write_suite(tmp_path, "hangs", "vanilla")
    (tmp_path / "hangs.py").write_text(
        f"import time\nopen({str(tmp_path / 'begun')!r}, 'w')\ntime.sleep(600)\n"
    )
    # A child of a process that ignores SIGINT, as under nohup, ignores it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run = start(tmp_path, "run", "suite.toml", "--plugin", "hangs.py")
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "begun").exists():
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=100)  # the import may take 120 s
    finally:
        run.kill()
    assert run.returncode == 130
    assert said == "modbench: stopped; run the same command again to continue\n"
