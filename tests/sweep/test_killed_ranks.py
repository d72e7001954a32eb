"""Processes that train one run together are killed, or the sweep is stopped, at random moments: the run
ends with the results of an undisturbed one. If one of them hangs, all end."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from small_suite import finished, modbench_says, start, write_suite

from modbench.records.store import read_suite

pytestmark = pytest.mark.processes


#: A router of which one process sleeps in a step, while the others wait for its gradients.
HANGING = """
import os, time
from dataclasses import dataclass
from modbench import ExpertRouter, register_router

@register_router("hanging")
@dataclass(frozen=True, kw_only=True)
class Hanging(ExpertRouter):
    def choose(self, logits_NE, tokens):
        gates_NK, ids_NK = logits_NE.softmax(-1).topk(self.top_k)
        if tokens.training and os.environ.get("RANK") == "1":
            open("asleep", "w").close()
            time.sleep(10_000)
        return ids_NK, gates_NK
"""


def write(place: Path, router: str = "token_choice", **sweep: float) -> None:
    write_suite(
        place,
        "ranks",
        router,
        model={"width": 32, "layers": 2, "heads": 4},
        train={"sequence": 64, "batch": 4, "checkpoint_seconds": 0.5, "parallel": {"data": 2}},
        measure={"steps": ["train", "heldout"], "heldout_tokens": 512, "curve_tokens": 256},
        sweep={"budgets": [1e10], "seeds": [0], **sweep},
    )


def ranks_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train, not those that started them."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        words = child.cmdline()
        if "modbench.sweep.rank" in words and "-c" not in words:
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


FIVE_ROUNDS = [pytest.param(5, seed, marks=pytest.mark.full) for seed in range(1, 5)]


@pytest.mark.parametrize(("rounds", "seed"), [pytest.param(2, 0, marks=pytest.mark.slow), *FIVE_ROUNDS])
def test_kills_of_a_runs_processes_change_no_result(tmp_path: Path, rounds: int, seed: int) -> None:
    write(tmp_path)
    code, said = modbench_says(tmp_path, "run", "suite.toml", "--results", "whole")
    assert code == 0, said
    whole = finished(tmp_path / "whole" / "ranks")
    (record,) = read_suite(tmp_path / "whole" / "ranks").runs
    assert record.environment["world_size"] == 2
    draw, seen = random.Random(seed), 0
    for number in range(rounds):
        words = ("run", "suite.toml", "--results", f"round-{number}")
        process = start(tmp_path, *words)
        seen += disturb(process, ["rank", "sweep"][number % 2], draw)
        output, _ = process.communicate(timeout=300)
        code, said = modbench_says(tmp_path, *words)
        assert code == 0, (output, said)
        assert finished(tmp_path / f"round-{number}" / "ranks") == whole, number
    assert seen >= (rounds - 1) / 2


def hanging(place: Path, **sweep: float) -> "subprocess.Popen[str]":
    """A sweep whose second process sleeps in its first step."""
    write(place, "hanging", **sweep)
    (place / "hanging.py").write_text(HANGING)
    return start(place, "run", "suite.toml", "--plugin", "hanging.py", "--results", "r")


@pytest.mark.slow
def test_a_hanging_process_ends_with_its_whole_group_within_the_runs_timeout(tmp_path: Path) -> None:
    """torchrun starts each in a session of its own."""
    process = hanging(tmp_path, cell_timeout=30.0)
    ranks = set[psutil.Process]()
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            ranks |= {*ranks_of(process)}
        time.sleep(0.1)
    said, _ = process.communicate()
    assert (tmp_path / "asleep").exists()
    assert "no progress for 30 s" in said
    assert len(ranks) == 2
    assert not [rank for rank in ranks if rank.is_running()]


@pytest.mark.slow
def test_the_processes_of_a_killed_worker_end_by_themselves(tmp_path: Path) -> None:
    process = hanging(tmp_path)
    while not (tmp_path / "asleep").exists():
        assert process.poll() is None
        time.sleep(0.1)
    ranks = ranks_of(process)
    ranks[0].suspend()  # it can do nothing for its end
    (worker,) = [
        of for of in psutil.Process(process.pid).children() if "modbench.sweep.worker" in of.cmdline()
    ]
    worker.kill()
    assert len(ranks) == 2
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    assert process.wait(timeout=60) == 1
    process.communicate()


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_stores_a_checkpoint_of_a_run_in_the_commands_process(
    tmp_path: Path,
) -> None:
    """It reaches all processes of the terminal's group."""
    write(tmp_path)
    process = start(tmp_path, "run", "suite.toml", "--results", "r", "--engine", "inline")
    while not (stored := [*tmp_path.glob("r/ranks/runs/*/checkpoint.pt")]):
        assert process.poll() is None
        time.sleep(0.05)
    pressed = time.time()
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert stored[0].stat().st_mtime > pressed
    assert torch.load(stored[0], weights_only=False)["step"] > 0
