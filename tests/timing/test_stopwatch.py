"""Stopwatches and NVML, on a fake clock and a fake GPU."""

import pytest
import torch
from timed_made_up import Nvml, Ticking

from modbench.analysis.noise import summary
from modbench.timing import clock
from modbench.timing.clock import Gpu, GpuMonitor
from modbench.timing.stopwatch import SHORTEST, CudaStopwatch, sampled


def test_a_short_run_is_repeated_until_a_sample_is_long_enough() -> None:
    found = sampled(Ticking(SHORTEST / 5), lambda: None, samples=4)
    assert found.loops == 8
    assert found.seconds == pytest.approx([SHORTEST / 5] * 4)
    assert sampled(Ticking(SHORTEST), lambda: None, samples=4).loops == 1


def test_a_run_that_takes_no_time_at_all_is_not_repeated_for_ever() -> None:
    runs: list[int] = []

    def run() -> None:
        runs.append(1)
        assert len(runs) < 10_000

    assert sampled(Ticking(0.0), run, samples=1).loops == 4096


def test_what_comes_between_runs_is_off_the_clock() -> None:
    order: list[str] = []
    sampled(
        Ticking(1.0),
        lambda: order.append("run"),
        samples=2,
        warm_up=1,
        before=lambda: order.append("before"),
        begin=lambda: order.append("begin"),
        meanwhile=lambda: order.append("meanwhile"),
    )
    run = ["before", "run"]
    assert order == [*run, *run, "begin", *run, "meanwhile", *run, "meanwhile"]


def test_a_gpus_cache_is_flushed_before_each_run_and_its_stream_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait for all"))
    watch = CudaStopwatch(lambda: order.append("flush"))
    run, meanwhile = (lambda: order.append("run")), (lambda: order.append("meanwhile"))
    assert watch.seconds(run, meanwhile) == 0.25
    assert order == ["flush", "wait for all", "record", "run", "record", "meanwhile", "wait"]


def test_clocks_and_throttling_come_from_nvml() -> None:
    monitor = GpuMonitor(Gpu(Nvml(), "new"))
    monitor.look()
    seen = monitor.seen()
    assert seen is not None
    assert seen["throttled"] == []
    monitor.look()
    assert monitor.seen() == {
        "clock_mhz": [1900, 2000],
        "memory_clock_mhz": [1500, 1500],
        "throttled": ["power cap", "software thermal slowdown"],
    }


def test_a_gpu_that_counts_no_energy_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LEAST_COUNTED", 0.0)
    for handle, joules in (("new", 0.0), ("old", None)):
        monitor = GpuMonitor(Gpu(Nvml(), handle))
        monitor.begin()
        assert monitor.joules(1) == joules


@pytest.mark.parametrize("driver", ["old", "new"])
def test_throttling_is_asked_by_the_name_that_the_driver_knows(driver: str) -> None:
    class Renamed(Nvml):
        def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
            if driver == "old":
                raise RuntimeError
            return 0x08

    monitor = GpuMonitor(Gpu(renamed := Renamed(), "new"))
    for _ in range(2):
        monitor.look()
    seen = monitor.seen()
    assert seen is not None
    assert ("hardware slowdown" in seen["throttled"]) == (driver == "new")
    assert (renamed.looks > 0) == (driver == "old")


@pytest.mark.parametrize(
    ("values", "stable"),
    [
        ([1.0, 1.01, 0.99, 1.0, 1.0], True),
        ([1.0] * 40 + [0.45], False),
        ([1.0] * 40 + [0.55], True),
        ([1.0] + [1.15, 0.85] * 4, False),
    ],
)
def test_a_summary_states_whether_it_is_stable(values: list[float], stable: bool) -> None:
    found = summary(values)
    assert found["stable"] is stable
    assert (found["median"], found["n"]) == (1.0, len(values))
