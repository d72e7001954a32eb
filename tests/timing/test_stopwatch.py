"""Stopwatches and NVML, on a fake clock and a fake GPU."""

import gc

import pytest
import torch
from timed_made_up import Nvml, Ticking

from modbench.analysis.noise import summary
from modbench.timing import clock
from modbench.timing import stopwatch as module
from modbench.timing.clock import Gpu, GpuMonitor
from modbench.timing.stopwatch import SHORTEST, CudaStopwatch, Stopwatch, sampled


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
        before=lambda: order.append("before"),
        begin=lambda: order.append("begin"),
        meanwhile=lambda: order.append("meanwhile"),
    )
    run = ["before", "run"]
    assert order == [*run, "begin", *run, "meanwhile", *run, "meanwhile"]


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


class Clock:
    """The module time: each run takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def run(self) -> None:
        self.now += 1.0


@pytest.mark.parametrize(("warm_up", "runs"), [(0.0, 0), (0.5, 1), (7.0, 7), (7.5, 8)])
def test_warm_up_is_by_time(warm_up: float, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    sampled(Stopwatch(), clock.run, samples=3, loops=1, warm_up=warm_up)
    assert clock.now == runs + 3


@pytest.mark.parametrize(("loops", "shortest", "each"), [(20, 0.0, 20), (0, 5.0, 8)])
def test_nothing_comes_between_the_runs_of_a_row(
    loops: int, shortest: float, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a wait nor a flush of the cache; the host's clock counts from wait to wait."""
    order: list[str] = []
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))

    def run() -> None:
        order.append("run")
        clock.run()

    watch = CudaStopwatch(lambda: order.append("flush"))
    found = sampled(
        watch,
        run,
        samples=2,
        loops=loops,
        shortest=shortest,
        in_a_row=True,
        before=lambda: order.append("before"),
        begin=lambda: order.append("begin"),
        meanwhile=lambda: order.append("meanwhile"),
    )
    assert order[order.index("begin") + 1 :] == ["wait", *["run"] * each, "wait", "meanwhile"] * 2
    assert not {"flush", "before"} & {*order}
    assert (found.seconds, found.loops) == ([1.0, 1.0], each)


@pytest.mark.parametrize("before", [True, False])
def test_garbage_is_not_collected_while_a_run_is_timed(before: bool) -> None:
    """The state of the collector is restored, after an error too."""
    seen: list[bool] = []

    def run() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 9:
            raise KeyError

    assert gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        sampled(Ticking(1.0), run, samples=5)
        assert gc.isenabled() is before
        with pytest.raises(KeyError):
            sampled(Ticking(1.0), run, samples=5)
        assert gc.isenabled() is before
    finally:
        gc.enable()
    assert seen == [False] * 9


def test_clocks_and_throttling_come_from_nvml() -> None:
    monitor = GpuMonitor(Gpu(Nvml(), "new"))
    monitor.look()
    seen = monitor.seen()
    assert seen is not None
    assert (seen["throttled"], seen["power_capped"]) == ([], True)
    monitor.look()
    assert monitor.seen() == {
        "clock_mhz": [1900, 2000],
        "memory_clock_mhz": [1500, 1500],
        "mean_clock_mhz": 1950,
        "power_capped": True,
        "throttled": ["software thermal slowdown"],
    }


@pytest.mark.parametrize("bit", [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x100])
def test_only_heat_and_power_supply_are_disturbances(bit: int) -> None:
    """Not idling, clocks that the user set, the power cap, or a display."""

    class Slowed(Nvml):
        def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
            return bit

    monitor = GpuMonitor(Gpu(Slowed(), "new"))
    monitor.look()
    seen = monitor.seen()
    assert seen is not None
    assert bool(seen["throttled"]) == (bit in (0x08, 0x20, 0x40, 0x80))
    assert seen["power_capped"] == (bit == 0x04)


def test_a_gpu_that_counts_no_energy_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LEAST_COUNTED", 0.0)
    for handle, joules in (("new", 0.0), ("old", None)):
        monitor = GpuMonitor(Gpu(Nvml(), handle))
        monitor.begin()
        assert monitor.joules(1) == joules


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
