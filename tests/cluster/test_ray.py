"""A local Ray cluster of two nodes: tasks, killed workers, a removed node, and the records of this
machine."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from engine_checks import (
    comparable,
    content,
    fault_rounds,
    run,
    run_fakes,
    small,
    start_fakes,
    starts,
    statuses,
    wait_for,
)

if find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.processes]


class RayCluster:
    """Two nodes, while it is a context. ``address``: of the first."""

    def __enter__(self) -> "RayCluster":
        script = Path(__file__).with_name("ray_cluster.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=120)

    def tell(self, what: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def tasks(self) -> list[psutil.Process]:
        """The processes of Ray that run a task."""
        processes = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::run" in " ".join(process.cmdline()):
                    processes.append(process)
        return processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture
def ray(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return cluster


def test_tasks_give_the_records_of_this_machine(tmp_path: Path, ray: RayCluster) -> None:
    small(tmp_path)
    run(tmp_path, "here", "--workers", "1")
    out = run(tmp_path, "there", "--engine", "ray")
    assert "2 of 2 runs done" in out
    assert comparable(tmp_path / "there" / "small") == comparable(tmp_path / "here" / "small")
    assert "2 of 2 runs done" in run(tmp_path, "there", "--engine", "ray")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_tasks_of_a_command_end_with_it_and_the_next_one_goes_on(
    tmp_path: Path, ray: RayCluster, number: int
) -> None:
    """Ray kills the processes of a command that is killed; one that is interrupted cancels its tasks."""
    folder = tmp_path / "s"
    command = start_fakes("ray", folder, "slow", "slow 2", "slow 3")
    wait_for(lambda: content(folder / "slow.pid"), "the task")
    worker = psutil.Process(int(content(folder / "slow.pid")))
    os.kill(command.pid, number)
    _, said = command.communicate(timeout=60)
    wait_for(lambda: not worker.is_running(), "the end of the worker")
    assert content(folder / "slow 3.pid") == ""
    if number == signal.SIGINT:
        assert command.returncode == 130
        assert "ray: 3 tasks stopped, each with a checkpoint if it ran" in said
        assert len([*folder.glob("runs/*/half_way")]) == len(starts(folder))
        assert run_fakes("ray", folder, "slow")[0] == 0
        assert statuses(folder) == [("slow", "ok")]


@pytest.mark.parametrize("rounds", [3, pytest.param(15, marks=pytest.mark.full)])
def test_kills_change_no_result(tmp_path: Path, ray: RayCluster, rounds: int) -> None:
    draw = random.Random(rounds)

    def kill(processes: list[psutil.Process]) -> bool:
        with contextlib.suppress(psutil.Error):
            if processes:
                draw.choice(processes).kill()
                return True
        return False

    def worker() -> bool:
        with contextlib.suppress(psutil.Error):
            return kill([child for task in ray.tasks() for child in task.children()])
        return False

    def node() -> bool:
        busy = bool(ray.tasks())
        ray.tell("remove")
        ray.tell("add")
        return busy

    faults = {"task": lambda: kill(ray.tasks()), "worker": worker, "node": node}
    made = fault_rounds(tmp_path, "ray", rounds, faults, ray.tasks)
    assert sum(made.values()) > rounds // 2, made
