"""What is on the clock, and what is not; on a made-up GPU and a made-up machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timed_made_up import Nvml, Ticking

from modbench.measure import stopwatch as stopwatches
from modbench.measure import system_load as busy
from modbench.measure.nvml import Gpu, Watched, open_gpu, throttling
from modbench.measure.stopwatch import SHORTEST, CudaStopwatch, HostStopwatch, sampled, stopwatch
from modbench.measure.system_load import Busy


def test_a_short_run_is_repeated_until_a_sample_is_long_enough() -> None:
    found = sampled(Ticking(SHORTEST / 5), lambda: None, samples=4)
    assert found.loops == 8
    assert found.seconds == pytest.approx([SHORTEST / 5] * 4)
    assert sampled(Ticking(SHORTEST), lambda: None, samples=4).loops == 1


def test_a_sample_spans_two_milliseconds_however_many_runs_that_takes() -> None:
    assert sampled(Ticking(1.9e-3), lambda: None, samples=1).loops == 2
    assert sampled(Ticking(1e-4), lambda: None, samples=1).loops == 32


def test_a_run_that_takes_no_time_at_all_is_not_repeated_for_ever() -> None:
    runs: list[int] = []

    def run() -> None:
        runs.append(1)
        assert len(runs) < 10_000

    assert sampled(Ticking(0.0), run, samples=1).loops == 4096


def test_a_processors_seconds_are_those_of_the_clock_on_the_wall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not those of its own work: it may wait, and that is time, too."""
    now = [5.0]
    clocks = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 2 * now[0])
    monkeypatch.setattr(stopwatches, "time", clocks)

    def work() -> None:
        now[0] += 0.25

    assert HostStopwatch().seconds(work, meanwhile=work) == 0.25
    assert now == [5.5]


def test_a_gpu_is_timed_by_its_events_behind_a_flush_of_twice_its_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    on, room = torch.device("cuda"), torch.ones(3)

    def empty(size: int, **how: Any) -> torch.Tensor:
        asked.append((size, how))
        return room

    properties = SimpleNamespace(L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch, "empty", empty)
    watch = stopwatch(on)
    assert isinstance(watch, CudaStopwatch)
    assert asked == [(2000, {"dtype": torch.uint8, "device": on})]
    watch._flush()
    assert not room.any()
    assert isinstance(stopwatch(torch.device("cpu")), HostStopwatch)


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


def test_a_gpus_cache_is_flushed_before_each_run_and_its_stream_awaited() -> None:
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

    cuda = SimpleNamespace(Event=Event, synchronize=lambda: order.append("wait for all"))
    watch = CudaStopwatch(cuda, lambda: order.append("flush"))
    run, meanwhile = (lambda: order.append("run")), (lambda: order.append("meanwhile"))
    assert watch.seconds(run, meanwhile) == 0.25
    assert order == ["flush", "wait for all", "record", "run", "record", "meanwhile", "wait"]


def test_clocks_throttling_and_energy_are_what_nvml_tells() -> None:
    gpu, watched = Gpu(Nvml(), "new"), Watched()
    gpu.look(watched)
    assert watched.as_dict()["throttled"] == []
    gpu.look(watched)
    assert watched.as_dict() == {
        "clock_mhz": [1900, 2000],
        "memory_clock_mhz": [1500, 1500],
        "throttled": ["power cap", "software thermal slowdown"],
    }
    assert gpu.joules() == 12.5
    assert Gpu(Nvml(), "old").joules() is None


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    class Silent(Nvml):
        def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:  # noqa: N802
            raise RuntimeError

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
            raise RuntimeError

    watched = Watched()
    Gpu(Silent(), "new").look(watched)
    assert watched.as_dict() == {"clock_mhz": None, "memory_clock_mhz": None, "throttled": []}


@pytest.mark.parametrize("driver", ["old", "new"])
def test_throttling_is_asked_by_the_name_that_the_driver_knows(driver: str) -> None:
    class Renamed(Nvml):
        def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
            if driver == "old":
                raise RuntimeError
            return 0x08

    watched = Watched()
    for _ in range(2):
        Gpu(renamed := Renamed(), "new").look(watched)
    assert watched.throttled == ({"hardware slowdown"} if driver == "new" else set())
    assert renamed.looks == (driver == "old")


def test_an_idle_gpu_and_clocks_set_by_hand_are_no_throttling() -> None:
    assert throttling(0x01 | 0x02 | 0x10 | 0x100) == []
    assert throttling(0x88) == ["hardware slowdown", "power brake"]
    assert throttling(0x04) == ["power cap"]
    assert throttling(0x20) == ["software thermal slowdown"]
    assert throttling(0x40) == ["hardware thermal slowdown"]


def test_where_nvml_cannot_be_asked_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_gpu(torch.device("cpu")) == (None, "no GPU")
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert open_gpu(torch.device("cuda")) == (None, "pynvml is not installed")


def machine(monkeypatch: pytest.MonkeyPatch, place: Path, *, load: float, busy_ticks: int) -> Busy:
    """A machine of two cores that a process watches for ten seconds, all its own work being 4: of what
    it started, and that started, too."""
    stat, clock = place / "stat", [100.0]
    monkeypatch.setattr(busy, "_STAT", stat)
    monkeypatch.setattr(busy, "_PROCESSES", place)
    monkeypatch.setattr(busy, "usable_cores", lambda: {0, 2})
    monkeypatch.setattr(busy.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(busy.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(busy.time, "monotonic", lambda: clock[0])

    def worked(process: int, name: str, parent: int, *ticks: int) -> None:
        (place / f"{process}").mkdir(exist_ok=True)
        times = " ".join(map(str, ticks))
        line = f"{process} ({name}) S {parent} 1 1 0 -1 0 0 0 0 0 {times} 20 0 1 0 99"
        # Linux cuts a name after 15 bytes, in the middle of a letter, too.
        (place / f"{process}" / "stat").write_bytes(line.encode().replace("ö)".encode(), b"\xc3)"))

    own = busy.os.getpid()
    worked(own, "python) S 1 (", 1, 90, 10, 0, 0)
    worked(own + 1, "compiler", own, 5, 5, 0, 0)
    worked(own + 3, "löschtöpfchenö", 1, 0, 0, 0, 0)

    def write(ticks: int) -> None:
        others = ("cpu  9 9 9 9 9 9 9 9 0 0", f"cpu1 {3 * ticks} 0 0 0 0 0 0 0 0 0", "intr 5")
        own = (f"cpu0 {ticks} 0 0 {ticks} 7 0 0 0 0 0", "cpu2 0 0 0 0 0 0 0 0 0 0")
        stat.write_text("\n".join([*others, *own]))

    write(0)
    watch = Busy()
    write(busy_ticks)
    clock[0] = 110.0
    worked(own, "python) S 1 (", 1, 190, 20, 30, 10)
    worked(own + 1, "compiler", own, 65, 10, 5, 10)
    worked(own + 2, "its child", own + 1, 150, 20, 0, 0)
    worked(own + 3, "löschtöpfchenö", 1, 600, 0, 0, 0)
    return watch


def test_other_peoples_work_is_what_the_cores_did_without_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = machine(monkeypatch, tmp_path, load=0.5, busy_ticks=1000).state(threads=1)
    assert state["others"] == 0.6
    assert not state["overloaded"]


def test_what_waits_for_a_gpu_is_counted_by_its_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def watch(number: int, busy_ticks: int) -> Busy:
        place = tmp_path / f"{number}"
        place.mkdir()
        return machine(monkeypatch, place, load=0.5, busy_ticks=busy_ticks)

    assert watch(1, 1000).state(2)["overloaded"]
    assert not watch(2, 1000).state(2, all_at_work=False)["overloaded"]
    assert watch(3, 2000).state(2, all_at_work=False)["others"] == 1.6
    assert watch(4, 2300).state(2, all_at_work=False)["overloaded"]


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.5),
        ("0::/not/seen/from/here\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("2:cpu,cpuacct:/c\n", {"cpu/c/cpu.cfs_quota_us": "70000\n"}, None),
        (
            "3:cpuset:/\n2:cpu,cpuacct:/c\n",
            {"cpu/c/cpu.cfs_quota_us": "-1\n", "cpu/c/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        (
            "3:memory:/c\n2:cpu,cpuacct:/c\n0::/\n",
            {"cpu/c/cpu.cfs_quota_us": "200000\n", "cpu/c/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
    ],
)
def test_threads_are_no_more_than_a_containers_share(
    own: str,
    files: dict[str, str],
    cores: float | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    groups, of_process = tmp_path / "cgroup", tmp_path / "own"
    of_process.write_text(own)
    for name, text in files.items():
        file = groups / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(busy, "_GROUPS", groups)
    monkeypatch.setattr(busy, "_OWN_GROUPS", of_process)
    monkeypatch.setattr(busy, "usable_cores", lambda: set(range(4)))
    assert busy.quota() == cores
    assert busy.thread_count() == (4 if cores is None else max(1, int(cores)))
    monkeypatch.setattr(busy, "_busy_seconds", lambda: None)
    monkeypatch.setattr(busy.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert Busy().state(threads=4)["overloaded"] == (cores is not None)


def test_where_there_are_no_groups_there_is_no_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(busy, "_OWN_GROUPS", tmp_path / "none")
    assert busy.quota() is None


def test_a_load_above_the_cores_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet = machine(monkeypatch, tmp_path, load=2.0, busy_ticks=400).state(threads=2)
    assert (quiet["others"], quiet["overloaded"]) == (0.0, False)
    assert machine(monkeypatch, tmp_path, load=2.5, busy_ticks=400).state(threads=2)["overloaded"]


@pytest.mark.parametrize(("load", "overloaded"), [(2.19, False), (2.21, True)])
def test_a_tenth_above_the_cores_is_borne(
    load: float, overloaded: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watch = machine(monkeypatch, tmp_path, load=load, busy_ticks=400)
    assert watch.state(threads=2)["overloaded"] == overloaded


def test_a_core_is_busy_with_all_but_idling_and_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also with what is done with low priority, and what the machine's host takes for others."""
    stat = tmp_path / "stat"
    stat.write_text("cpu0 1 10 100 1000 10000 100000 1000000 10000000 5 5\n")
    monkeypatch.setattr(busy, "_STAT", stat)
    monkeypatch.setattr(busy, "usable_cores", lambda: {0})
    monkeypatch.setattr(busy.os, "sysconf", lambda name: 1)
    assert busy._busy_seconds() == 11_100_111


def test_the_clock_is_the_mean_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("cpu MHz\t\t: 1000.0\nmodel\t: 5\ncpu MHz\t\t: 2500.5\n")
    monkeypatch.setattr(busy, "_INFO", info)
    assert busy.processor_mhz() == 1750.2
