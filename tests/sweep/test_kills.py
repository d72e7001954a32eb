"""SIGKILL of workers, of the sweep, or of both, at random moments: nothing is lost or double."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

import modbench
from modbench.report.metrics import METRICS
from modbench.report.store import read_suite

SUITE = """
[suite]
name = "kills"
[model]
width = 32
layers = 2
heads = 4
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
sequence = 64
batch = 4
checkpoint_seconds = 0.05
[measure]
steps = ["train", "heldout"]
heldout_tokens = 512
curve_tokens = 256
[sweep]
budgets = [2e10]
seeds = [0, 1]
[[schemes]]
router = "vanilla"
[[schemes]]
router = "mod"
"""


def start(place: Path, results: str) -> "subprocess.Popen[str]":
    places = {
        "MODBENCH_CACHE": str(place / "cache"),
        "PYTHONPATH": str(Path(modbench.__file__).parent.parent),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "modbench", "run", "suite.toml", "--results", results],
        cwd=place,
        env={**os.environ, **places},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(place: Path, results: str) -> str:
    process = start(place, results)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def untimed(folder: Path) -> dict[str, Any]:
    """The finished cells by key: all but times, memory and the moment."""
    found = [record for record in read_suite(folder).cells if record.status == "ok"]
    assert max(Counter(record.key for record in found).values(), default=1) == 1
    return {
        record.key: (
            {name: value for name, value in record.metrics.items() if METRICS[name].kind != "timed"},
            record.curve,
            record.audit,
        )
        for record in found
    }


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
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "text.txt").write_text("\n\n".join(f"one line and another, {n}." for n in range(400)))
    started = time.monotonic()
    run(tmp_path, "whole")
    long, draw = time.monotonic() - started, random.Random(rounds)
    folder = tmp_path / "parts" / "kills"
    for _ in range(rounds):
        before = untimed(folder)
        process = start(tmp_path, "parts")
        time.sleep(draw.uniform(0.2, 0.8) * long)
        kill(process, draw.choice(["worker", "sweep", "both"]))
        assert untimed(folder).items() >= before.items()
    run(tmp_path, "parts")
    assert untimed(folder) == untimed(tmp_path / "whole" / "kills")
    assert "cells of kills are done" in run(tmp_path, "parts")
    left = [path for path in folder.rglob("*") if path.suffix in (".half", ".tmp", ".part")]
    empty = [shard for shard in folder.glob("records/*") if not shard.stat().st_size]
    assert left == empty == []
