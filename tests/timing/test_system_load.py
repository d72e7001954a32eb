"""The load of a machine while something is timed, on a fake machine of two cores."""

import os
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modbench.timing import system_load
from modbench.timing.system_load import LoadMonitor

Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Monitor ten seconds in which all cores are busy for ``busy`` seconds, four of them by us."""

    def run(threads: int, *, busy: float = 4.0, **how: bool) -> dict[str, Any]:
        moments = {"_busy_seconds": (90.0, 90.0 + busy), "_own_seconds": (3.0, 7.0)}
        for name, values in moments.items():
            monkeypatch.setattr(system_load, name, iter(values).__next__)
        clock = SimpleNamespace(monotonic=iter((100.0, 110.0)).__next__)
        monkeypatch.setattr(system_load, "time", clock)
        monkeypatch.setattr(system_load, "usable_cores", lambda: [0, 2])
        # Of the whole machine, of which these two cores are a part.
        monkeypatch.setattr(system_load.os, "getloadavg", lambda: (300.0, 300.0, 300.0))
        return LoadMonitor().state(threads, **how)

    return run


def test_others_are_the_busy_cores_without_our_own_work(measure: Measure) -> None:
    state = measure(1, busy=10.0)
    assert (state["others"], state["overloaded"]) == (0.6, False)


def test_threads_that_wait_for_a_gpu_count_by_their_work(measure: Measure) -> None:
    assert measure(2, busy=10.0)["overloaded"]
    assert not measure(2, busy=10.0, all_at_work=False)["overloaded"]
    assert measure(2, busy=23.0, all_at_work=False)["overloaded"]


@pytest.mark.parametrize(("busy", "overloaded"), [(5.9, False), (6.1, True)])
def test_work_ten_percent_above_the_cores_is_overload(
    busy: float, overloaded: bool, measure: Measure
) -> None:
    assert measure(2, busy=busy)["overloaded"] is overloaded


@pytest.mark.parametrize(("others", "overloaded"), [(1, True), (3, True), (0, False), (2, False)])
def test_only_work_on_usable_cores_counts(
    others: int, overloaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four cores a job may use 1 and 3; a neighbour keeps one busy, and waits for disks on all."""
    seconds = [0.0] * 4
    times = namedtuple("times", ("user", "idle", "iowait"))
    fake = SimpleNamespace(cpu_times=lambda percpu: [times(busy, 7.0, 7.0 * busy) for busy in seconds])
    monkeypatch.setattr(system_load, "psutil", fake)
    monkeypatch.setattr(system_load, "usable_cores", lambda: [1, 3])
    monkeypatch.setattr(system_load, "quota", lambda: None)
    monkeypatch.setattr(system_load, "_own_seconds", lambda: 0.0)
    clock = SimpleNamespace(monotonic=iter((100.0, 110.0)).__next__)
    monkeypatch.setattr(system_load, "time", clock)
    load = LoadMonitor()
    seconds[others] = 10.0
    assert load.state(2)["overloaded"] is overloaded


@pytest.mark.parametrize(
    ("text", "cores"), [(None, None), ("max 100000\n", None), ("150000 100000\n", 1.5)]
)
def test_a_containers_quota_limits_threads(
    text: str | None,
    cores: float | None,
    measure: Measure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "cpu.max"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(system_load, "_QUOTA", file)
    assert system_load.quota() == cores
    assert measure(2)["overloaded"] is (cores is not None)
    assert system_load.thread_count() == (2 if cores is None else 1)


def test_this_machine_can_be_monitored() -> None:
    state = LoadMonitor().state(1)
    assert state["others"] >= 0
    assert state["cores"] >= 1


class Card:
    """A GPU whose processes nvidia-smi lists as ``lines``; ``is_ours``: this process uses it."""

    def __init__(self, lines: str, is_ours: bool = False) -> None:
        self.lines, self.is_ours = lines, is_ours


@pytest.fixture
def put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Card], None]:
    """Put a card into this machine."""

    def put(card: Card) -> None:
        answer = card.lines.replace("OWN", str(os.getpid())).replace("PARENT", str(os.getppid()))
        script = tmp_path / "nvidia-smi"
        ask = (
            'case "$*" in *--id=GPU-the-uuid*--query-compute-apps=pid,used_memory*) ;; *) exit 6;; esac'
        )
        script.write_text(f"#!/bin/sh\n{ask}\nprintf '{answer}'\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2**20 * card.is_ours)
        properties = SimpleNamespace(uuid="the-uuid")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)

    return put


@pytest.mark.parametrize(
    ("lines", "is_ours", "others"),
    [
        ("", False, []),
        ("OWN, 512\\nPARENT, 300\\n", True, []),
        ("OWN, 512\\n999999, 40000\\n", True, ["process 999999 (40000 MiB)"]),
        ("999998, [N/A]\\n", False, ["process 999998 ([N/A] MiB)"]),
        # In a container: one of the numbers is that of this process outside of it.
        ("999999, 512\\n", True, []),
        ("999998, 512\\n999999, 40000\\n", True, ["process 999998 (512 MiB)"]),
    ],
)
def test_other_processes_on_the_gpu_are_found(
    lines: str,
    is_ours: bool,
    others: list[str],
    put_in: Callable[[Card], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system_load, "_busy_seconds", lambda: 0.0)
    put_in(Card(lines, is_ours))
    assert system_load.gpu_processes() == others
    load = LoadMonitor()
    load.look_at_gpu()
    state = load.state(1)
    assert (state["overloaded"], state["gpu_processes"]) == (bool(others), others)


def test_a_gpu_without_nvidia_smi_has_no_known_processes(
    put_in: Callable[[Card], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(Card("999999, 40000\\n"))
    monkeypatch.setenv("PATH", "")
    assert system_load.gpu_processes() == []


@pytest.mark.parametrize("leaves", [True, False])
def test_a_process_on_the_gpu_is_waited_for_and_named(
    leaves: bool, tmp_path: Path, put_in: Callable[[Card], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most for a while; then the measurement begins, and is marked."""
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(system_load, "QUIET_SECONDS", 600.0 if leaves else 1.0)
    monkeypatch.setattr(system_load, "_QUIET_CORES", 1000.0)
    put_in(Card("999999, 40000\\n"))
    reasons: list[str] = []

    def wait(reason: str) -> None:
        reasons.append(reason)
        if leaves:
            put_in(Card(""))

    with system_load.measuring(wait=wait):
        assert bool(system_load.gpu_processes()) is not leaves
    assert {*reasons} == {"waiting for process 999999 (40000 MiB) to leave the GPU"}
    assert len(reasons) == 1 or not leaves
