"""Processes that train one run together are killed, or the sweep is stopped, at random moments: the run
ends with the results of an undisturbed one."""

import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from small_suite import finished, modbench_says, start, write_suite

from modbench.records.store import read_suite

pytestmark = pytest.mark.processes


def write(place: Path) -> None:
    write_suite(
        place,
        "ranks",
        "token_choice",
        model={"width": 32, "layers": 2, "heads": 4},
        train={"sequence": 64, "batch": 4, "checkpoint_seconds": 0.5, "parallel": {"data": 2}},
        measure={"steps": ["train", "heldout"], "heldout_tokens": 512, "curve_tokens": 256},
        sweep={"budgets": [1e10], "seeds": [0]},
    )


def ranks_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train, not those that started them."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        words = child.cmdline()
        if "modbench.sweep.rank" in words and "torch.distributed.run" not in words:
            found.append(child)
    return found


def disturb(process: "subprocess.Popen[str]", what: str, moment: random.Random) -> bool:
    """Kill a process that trains, or stop the sweep, some time after training began; return True if the
    sweep lived to see it."""
    while process.poll() is None:
        try:
            ranks = ranks_of(process)
            if len(ranks) == 2:
                time.sleep(moment.uniform(0, 3))
                ranks = ranks_of(process)
                if what == "rank" and ranks:
                    moment.choice(ranks).kill()
                    return True
                if what == "sweep":
                    process.send_signal(signal.SIGINT)
                    return True
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "rounds", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.full)]
)
def test_kills_of_a_runs_processes_change_no_result(tmp_path: Path, rounds: int) -> None:
    write(tmp_path)
    code, said = modbench_says(tmp_path, "run", "suite.toml", "--results", "whole")
    assert code == 0, said
    whole = finished(tmp_path / "whole" / "ranks")
    (record,) = read_suite(tmp_path / "whole" / "ranks").runs
    assert record.environment["world_size"] == 2
    draw, seen = random.Random(rounds), 0
    for number in range(rounds):
        words = ("run", "suite.toml", "--results", f"round-{number}")
        process = start(tmp_path, *words)
        seen += disturb(process, ["rank", "sweep"][number % 2], draw)
        output, _ = process.communicate(timeout=300)
        code, said = modbench_says(tmp_path, *words)
        assert code == 0, (output, said)
        assert finished(tmp_path / f"round-{number}" / "ranks") == whole, number
    assert seen >= rounds / 2
