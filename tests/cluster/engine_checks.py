"""Runs suites and fake jobs on an engine, and compares records of engines."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_suite import modbench_says, start, write_suite

from modbench.records.line import canonical_json
from modbench.records.store import read_suite

DRIVER = Path(__file__).with_name("drive_launch.py")


def small(place: Path, seeds: int = 1, budget: float = 3e8) -> None:
    """Write a suite whose runs store checkpoints all the time."""
    write_suite(
        place,
        "small",
        "vanilla",
        "mod",
        model={"width": 32, "layers": 2, "heads": 4},
        train={"sequence": 64, "batch": 4, "checkpoint_seconds": 0.05},
        measure={"heldout_tokens": 512, "curve_tokens": 256},
        sweep={"budgets": [budget], "seeds": [*range(seeds)]},
    )


def curves(place: Path) -> None:
    """Write a suite with an isoFLOP curve, whose sizes follow the losses of its learning rates."""
    write_suite(
        place,
        "curves",
        "vanilla",
        model={"layers": 1, "heads": 1, "width": None},
        train={"sequence": 32, "batch": 2},
        measure={"heldout_tokens": 512, "curve_tokens": 256},
        sweep={"budgets": [3e9], "seeds": [0]},
        isoflop={"sizes": 5, "width_step": 2, "passes": 1000, "refine": False, "rate_seed": 0},
    )


def run(place: Path, results: str, *words: str) -> str:
    code, out = modbench_says(place, "run", "suite.toml", "--results", results, *words)
    assert code == 0, out
    return out


def comparable(folder: Path) -> list[str]:
    """The lines of all records without what tells machine, process and time; without failures, and each
    of the others once."""
    lines = []
    for path in (folder / "records").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            record: dict[str, Any] = json.loads(line)
            if record.get("status") == "failed":
                continue
            # "code" has the commit of the checkout, which may change in these minutes.
            for name in ("digest", "environment", "started", "finished", "seconds", "code"):
                record.pop(name, None)
            lines.append(canonical_json(record))
    twice = [line for line, number in Counter(lines).items() if number > 1]
    assert not twice
    return sorted(lines)


def start_fakes(engine: str, folder: Path, *labels: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(DRIVER), engine, str(folder), *labels]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def run_fakes(engine: str, folder: Path, *labels: str) -> tuple[int, str]:
    process = start_fakes(engine, folder, *labels)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def starts(folder: Path) -> list[str]:
    file = folder / "started.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    return sorted(line.rpartition(" ")[0] for line in lines)


def statuses(folder: Path) -> list[tuple[str, str]]:
    runs = read_suite(folder).runs
    return sorted((record.run["router"]["options"]["label"], record.status) for record in runs)


def wait_for(ready: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.1)
    return answer


def content(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def fault_rounds(
    place: Path,
    engine: str,
    rounds: int,
    faults: dict[str, Callable[[], bool]],
    busy: Callable[[], object],
) -> Counter[str]:
    """Run a suite on ``engine``, with one of ``faults``, or a kill of the command, at a random moment of
    each round once a task is ``busy``; compare its records with those of this machine. A fault returns
    False if there was nothing to kill, and is tried again. Returns how often each was made."""
    small(place, seeds=max(3, rounds // 3), budget=1e9)
    run(place, "whole", "--workers", "1")
    draw = random.Random(rounds)
    folder = place / "parts" / "small"
    made: Counter[str] = Counter()
    for _ in range(rounds):
        command = start(place, "run", "suite.toml", "--results", "parts", "--engine", engine)
        fault, hit = draw.choice([*faults, "sweep"]), False
        while not hit and command.poll() is None:
            wait_for(lambda: busy() or command.poll() is not None, "a task")  # noqa: B023
            time.sleep(draw.uniform(0, 4))  # a task takes longer, so that runs are left for later rounds
            hit = command.poll() is None if fault == "sweep" else faults[fault]()
        made[fault] += hit
        if fault != "sweep":
            time.sleep(draw.uniform(0, 5))
        command.kill()
        command.communicate(timeout=60)
    for _ in range(3):  # a job that was killed is a failure, which the same command tries again
        code, out = modbench_says(place, "run", "suite.toml", "--results", "parts", "--engine", engine)
        if code == 0:
            break
    assert code == 0, out
    assert comparable(folder) == comparable(place / "whole" / "small")
    hour_ago = time.time() - 3700
    for path in folder.rglob("*.tmp"):  # another writer's, for all that a command knows
        os.utime(path, (hour_ago, hour_ago))
    assert modbench_says(place, "run", "suite.toml", "--results", "parts", "--engine", engine)[0] == 0
    assert not [path for path in folder.rglob("*") if path.suffix in (".half", ".part", ".tmp")]
    return made
