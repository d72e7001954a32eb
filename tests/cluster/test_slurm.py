"""A real Slurm of one node: arrays, requeues, kills, and the records of this machine."""

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engine_checks import (
    comparable,
    content,
    curves,
    fault_rounds,
    run,
    small,
    start_fakes,
    starts,
    statuses,
    wait_for,
)
from slurm_cluster import SlurmCluster, missing
from small_suite import modbench_says

if missing():
    reason = f"no {', '.join(missing())} here; unpack Debian's packages and set MODBENCH_SLURM"
    pytest.skip(reason, allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def slurm(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, with its commands on the PATH; its queue is empty before and after."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.says("scancel", *cluster.queue())
    wait_for(lambda: not cluster.queue(), "an empty queue")


def tasks(folder: Path) -> list[str]:
    """The jobs of all arrays of a suite."""
    lists = (folder / "slurm").glob("*/jobs.txt")
    return [line for file in lists for line in file.read_text().splitlines()]


def test_an_array_gives_the_records_of_this_machine(tmp_path: Path, slurm: SlurmCluster) -> None:
    small(tmp_path)
    run(tmp_path, "here", "--workers", "1")
    out = run(tmp_path, "there", "--engine", "slurm", "--workers", "1")
    folder = tmp_path / "there" / "small"
    assert "of 2 tasks; its script and logs:" in out
    assert "2 of 2 runs done" in out
    assert comparable(folder) == comparable(tmp_path / "here" / "small")
    assert "2 of 2 runs done" in run(tmp_path, "there", "--engine", "slurm")
    assert len(tasks(folder)) == 2


def test_an_isoflop_suite_goes_on_where_losses_decide(tmp_path: Path, slurm: SlurmCluster) -> None:
    curves(tmp_path)
    run(tmp_path, "here", "--workers", "1")
    run(tmp_path, "there", "--engine", "slurm")
    folder = tmp_path / "there" / "curves"
    assert comparable(folder) == comparable(tmp_path / "here" / "curves")
    assert len({*tasks(folder)}) > 5  # learning rates first, then sizes
    assert len([*(folder / "slurm").iterdir()]) > 1


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ("partition=nope", "invalid partition specified: nope"),
        ("gpus=2", "Requested node configuration is not available"),
    ],
)
def test_what_the_cluster_has_not_is_refused(
    tmp_path: Path, slurm: SlurmCluster, request_: str, sentence: str
) -> None:
    small(tmp_path)
    code, out = modbench_says(tmp_path, "run", "suite.toml", "--engine", "slurm", "--request", request_)
    assert code == 2
    assert len(out.splitlines()) == 1
    assert sentence in out
    assert not slurm.queue()


@pytest.mark.parametrize("by", ["the end of its time", "an administrator"])
def test_a_requeued_task_goes_on_from_its_checkpoint(
    tmp_path: Path, slurm: SlurmCluster, by: str
) -> None:
    folder = tmp_path / "s"
    command = start_fakes("slurm", folder, "slow", "a")
    wait_for(lambda: content(folder / "slow.pid"), "the task")
    (task,) = wait_for(lambda: slurm.queue() if len(slurm.queue()) == 1 else None, "the end of a")
    if by == "an administrator":
        slurm.says("scontrol", "requeue", task)
    else:
        slurm.says("scancel", "--batch", "--signal=TERM", task)
    _, said = command.communicate(timeout=200)
    assert command.returncode == 0, said
    assert starts(folder) == ["a", "slow", "slow"]
    assert statuses(folder) == [("a", "ok"), ("slow", "ok")]
    assert len(tasks(folder)) == 2


def test_a_command_that_is_stopped_leaves_its_tasks_and_the_next_one_watches_them(
    tmp_path: Path, slurm: SlurmCluster
) -> None:
    folder = tmp_path / "s"
    labels = ["slow", *"abcd"]
    first = start_fakes("slurm", folder, *labels)
    wait_for(lambda: content(folder / "slow.pid"), "the task")
    os.kill(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "stay in the queue" in said
    second = start_fakes("slurm", folder, *labels)
    wait_for(lambda: len(statuses(folder)) == 4, "the other tasks")
    slurm.says("scancel", "--batch", "--signal=TERM", *slurm.queue())
    _, said = second.communicate(timeout=200)
    assert second.returncode == 0, said
    assert starts(folder) == [*"abcd", "slow", "slow"]
    assert len(tasks(folder)) == 5


def test_two_submissions_at_once_run_each_job_once(tmp_path: Path, slurm: SlurmCluster) -> None:
    folder = tmp_path / "a folder" / "s"
    commands = [start_fakes("slurm", folder, *"abcdef") for _ in range(2)]
    for command in commands:
        _, said = command.communicate(timeout=300)
        assert command.returncode == 0, said
    assert starts(folder) == [*"abcdef"]
    assert statuses(folder) == [(label, "ok") for label in "abcdef"]
    assert len(tasks(folder)) == 6


@pytest.mark.parametrize("rounds", [3, pytest.param(15, marks=pytest.mark.full)])
def test_kills_change_no_result(tmp_path: Path, slurm: SlurmCluster, rounds: int) -> None:
    draw = random.Random(rounds)

    def task() -> bool:
        """SIGKILL one of the tasks."""
        with contextlib.suppress(psutil.Error):
            processes = [p for p in slurm.on_node() if "modbench.sweep.slurm" in p.cmdline()]
            if processes:
                draw.choice(processes).kill()
                return True
        return False

    def node() -> bool:
        busy = bool(slurm.on_node())
        slurm.kill_node()
        slurm.start_node()
        return busy

    faults = {"task": task, "node": node}
    made = fault_rounds(tmp_path, "slurm", rounds, faults, slurm.on_node)
    assert sum(made.values()) > rounds // 2, made
