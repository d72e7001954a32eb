"""The load of a machine while something is timed, on a fake machine of two cores."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modbench.timing import system_load
from modbench.timing.system_load import LoadMonitor

Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Monitor ten seconds in which all cores are busy for ``busy`` seconds, four of them by us."""

    def run(threads: int, *, busy: float = 4.0, load: float = 0.5, **how: bool) -> dict[str, Any]:
        moments = {"_busy_seconds": (90.0, 90.0 + busy), "_own_seconds": (3.0, 7.0)}
        for name, values in moments.items():
            monkeypatch.setattr(system_load, name, iter(values).__next__)
        clock = SimpleNamespace(monotonic=iter((100.0, 110.0)).__next__)
        monkeypatch.setattr(system_load, "time", clock)
        monkeypatch.setattr(system_load, "usable_cores", lambda: [0, 2])
        monkeypatch.setattr(system_load.os, "getloadavg", lambda: (load, 0.0, 0.0))
        return LoadMonitor().state(threads, **how)

    return run


def test_others_are_the_busy_cores_without_our_own_work(measure: Measure) -> None:
    state = measure(1, busy=10.0)
    assert (state["others"], state["overloaded"]) == (0.6, False)


def test_threads_that_wait_for_a_gpu_count_by_their_work(measure: Measure) -> None:
    assert measure(2, busy=10.0)["overloaded"]
    assert not measure(2, busy=10.0, all_at_work=False)["overloaded"]
    assert measure(2, busy=23.0, all_at_work=False)["overloaded"]


@pytest.mark.parametrize(("load", "overloaded"), [(2.19, False), (2.21, True)])
def test_a_load_ten_percent_above_the_cores_is_overload(
    load: float, overloaded: bool, measure: Measure
) -> None:
    assert measure(2, load=load)["overloaded"] is overloaded


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
