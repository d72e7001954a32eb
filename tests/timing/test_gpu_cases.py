"""Cases of a GPU, with stand-ins for it: steps in a row, the host's share, CUDA graphs, errors that end
the use of the GPU, and its memory in use by others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timed_made_up import Ticking, subject
from torch.autograd import DeviceType

from modbench.timing import benchmark_case, clock, system_load
from modbench.timing.benchmark_case import LAUNCHES_AHEAD, Prepared, graphed, training_cases
from modbench.timing.clock import busy_seconds, ends_gpu, measured_times
from modbench.timing.config import TimeConfig

ONE_DECODING = {"prefill": [8], "decode_past": [8], "decode_batches": [1], "decode_tokens": 2}


class Ahead(Ticking):
    """A run takes a second, and half a second in a row."""

    def in_a_row(self, run: Any, runs: int, meanwhile: Any = benchmark_case.nothing) -> float:
        return super().in_a_row(run, runs, meanwhile) / 2


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU takes the part of a GPU that has no graphs."""
    monkeypatch.setattr(clock, "stopwatch", lambda on: Ahead(1.0))
    monkeypatch.setattr(clock, "busy_seconds", lambda prepared: 0.0)
    monkeypatch.setattr(benchmark_case, "graphed", lambda prepared: None)
    LAUNCHES_AHEAD.add("cpu")
    yield
    LAUNCHES_AHEAD.discard("cpu")


@pytest.mark.parametrize(("samples", "taken"), [(5, 3), (2, 2)])
def test_training_steps_in_a_row_are_a_case(samples: int, taken: int, gpu: None) -> None:
    steps = 20
    found = measured_times("training", subject("mod", samples=samples), 1)
    forward, single, row = found["cases"]
    assert [case["name"] for case in found["cases"]] == ["forward", "train", f"train x {steps}"]
    assert (row["seconds"], row["loops"]) == ([0.5] * taken, steps)
    assert (single["seconds"], single["loops"]) == ([1.0] * samples, 1)
    assert row["flops"] == single["flops"] != forward["flops"]


def test_steps_in_a_row_are_of_a_gpu_alone(gpu: None) -> None:
    model = subject().build()
    LAUNCHES_AHEAD.discard("cpu")
    assert [case.name for case in training_cases(model, subject())] == ["forward", "train"]


@pytest.mark.parametrize(("busy", "share"), [(0.25, 0.75), (1.5, 0.0), (0.0, None)])
def test_the_hosts_share_is_the_time_in_which_the_gpu_does_not_compute(
    busy: float, share: float | None, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a case whose kernels were counted."""
    monkeypatch.setattr(clock, "busy_seconds", lambda prepared: busy)
    found = measured_times("inference", subject(**ONE_DECODING), 1)
    assert [case.get("host_share") for case in found["cases"]] == [share] * 2


def test_times_remain_if_the_profiler_fails(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(prepared: Prepared) -> float:
        raise RuntimeError("no CUPTI")

    monkeypatch.setattr(clock, "busy_seconds", fail)
    found = measured_times("inference", subject(**ONE_DECODING), 1)
    assert [case["seconds"] for case in found["cases"]] == [[1.0] * 3] * 2
    assert "failed" not in found


def test_a_gpu_is_busy_while_its_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def event(kind: DeviceType, microseconds: float) -> SimpleNamespace:
        span = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(device_type=kind, time_range=span)

    @contextmanager
    def profile(activities: Any) -> Iterator[SimpleNamespace]:
        order.append("begin")
        kernels = [event(DeviceType.CUDA, 300.0), event(DeviceType.CUDA, 200.0)]
        yield SimpleNamespace(events=lambda: [event(DeviceType.CPU, 9000.0), *kernels])
        order.append("end")

    monkeypatch.setattr(clock, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    prepared = Prepared(lambda: order.append("run") or [], before=lambda: order.append("before"))
    assert busy_seconds(prepared) == pytest.approx(5e-4)
    assert order == ["before", "begin", "run", "wait", "end"]


class Graphs:
    """Stands for torch.cuda: captures by running, and replays by counting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, captures: bool = True) -> None:
        self.mode, self.replays, self.captures = "default", 0, captures
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def set(self, mode: str) -> None:
        self.mode = mode

    @contextmanager
    def capture(self, graph: "Graphs") -> Iterator[None]:
        assert (graph, self.mode) == (self, "default")
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield

    def replay(self) -> None:
        self.replays += 1


def test_a_run_of_static_shapes_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, order = Graphs(monkeypatch), list[str]()

    def run() -> Any:
        order.append("run")
        return [f"trace {order.count('run')}"]

    graph = graphed(Prepared(run, before=lambda: order.append("before")))
    assert graph is not None
    assert order == ["before", "run"] * 3  # the cache grows; without waits; captured
    assert graph.run() == graph.run() == ["trace 3"]
    assert (graphs.replays, order.count("run"), graphs.mode) == (2, 3, "default")


@pytest.mark.parametrize("captures", [True, False])
def test_a_run_whose_host_reads_values_has_no_graph(
    captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = Graphs(monkeypatch, captures=captures)

    def run() -> Any:
        if captures and graphs.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return []

    assert graphed(Prepared(run)) is None
    assert graphs.mode == "default"


def test_an_error_that_ends_the_gpu_ends_the_process_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scheme's other cases are timed, and only the one that raised has failed."""
    right, read = clock._case, list[str]()

    def case(of: Any, *rest: Any) -> dict[str, Any]:
        read.append(of.name)
        if of.name == "decode after 8 x 1":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return right(of, *rest)

    monkeypatch.setattr(clock, "_case", case)
    of = subject(prefill=[8], decode_past=[8, 12], decode_batches=[1], decode_tokens=2)
    first = measured_times("inference", of, 1)
    assert (read, first["next"]) == (["prefill 8 x 1", "decode after 8 x 1"], 2)
    first["machine"]["overloaded"] = True
    second = measured_times("inference", of, 1, earlier=first)
    assert read[2:] == ["decode after 12 x 1"]
    assert [timed["name"] for timed in second["cases"]] == ["prefill 8 x 1", "decode after 12 x 1"]
    assert "next" not in second
    assert len(second["failed"]) == 1
    assert second["failed"][0].startswith("decode after 8 x 1 raised AcceleratorError")
    assert second["machine"]["overloaded"]


def test_the_last_case_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def case(of: Any, *rest: Any) -> dict[str, Any]:
        if of.name == "train":
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return {}

    monkeypatch.setattr(clock, "_case", case)
    found = measured_times("training", subject(), 1)
    assert "next" not in found
    assert len(found["failed"]) == 1


@pytest.mark.parametrize("is_broken", [True, False])
def test_an_error_is_tried_out_on_the_gpu(is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may raise another error for the same cause."""

    def synchronize(on: torch.device) -> None:
        if is_broken:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    error = RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")
    assert ends_gpu(error, torch.device("cuda")) is is_broken
    assert not ends_gpu(error, torch.device("cpu"))


@pytest.mark.parametrize("others", [["process 7 (40000 MiB)"], []])
def test_lack_of_memory_next_to_another_process_is_no_result(
    others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def case(*_: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(clock, "_case", case)
    monkeypatch.setattr(system_load, "gpu_processes", lambda: others)
    found = measured_times("training", subject(), 1)
    assert len(found.get("ran_out", [])) == (0 if others else 2)
    assert len(found.get("failed", [])) == (2 if others else 0)
    assert all(others[0] in sentence for sentence in found.get("failed", []))
    assert found["machine"]["gpu_processes"] == others
    assert found["machine"]["overloaded"] or not others


@pytest.mark.parametrize(("on", "seconds"), [("cuda", 0.5), ("cpu", 0.1)])
def test_a_gpu_is_warmed_up_for_half_a_second(on: str, seconds: float) -> None:
    of = replace(subject(), on=torch.device(on), time=TimeConfig())
    assert of.warm_up == pytest.approx(seconds)


@pytest.mark.parametrize("at", [0, 1])
def test_a_process_next_to_ceilings_marks_them(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There at the beginning, or at the end."""
    seen = [[], []]
    seen[at].append("process 7 (40000 MiB)")
    looks = iter(seen)
    monkeypatch.setattr(system_load, "gpu_processes", lambda: next(looks))
    monkeypatch.setattr(clock, "stopwatch", lambda on: Ticking(1.0))
    monkeypatch.setattr(clock, "COPIED", {"cpu": 16})
    machine = clock.measured_ceilings(subject(), 1)["machine"]
    assert (machine["overloaded"], machine["gpu_processes"]) == (True, ["process 7 (40000 MiB)"])
