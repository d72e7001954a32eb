"""Measurements of `modbench time` and the steps ``timing`` and ``memory`` of a cell."""

import contextlib
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modbench.errors import UserError
from modbench.records.record import TimingRecord
from modbench.records.store import read_suite
from modbench.sweep.steps import memory as memory_step
from modbench.sweep.steps import timing as timing_step
from modbench.sweep.timing_job import describe_machine, measure_peak, run_timing
from modbench.sweep.worker import DiedError, run_worker
from modbench.timing import benchmark_case, footprint, machine_lock
from modbench.timing.benchmark_target import BenchmarkTarget
from modbench.train.out_of_memory import failed_allocation

LACK = torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")
SAID = "out of memory, asked for 2,147,483,648 bytes (Tried to allocate 2.00 GiB.)"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A measurement of a tiny model on a machine that need not be quiet."""
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine_lock, "QUIET_SECONDS", 0.0)
    router = {"name": "mod", "label": "mod", "options": {}, "plugin_sha256": None}
    time = {"samples": 3, "warm_up": 0, "prefill": [8], "decode_past": [8], "decode_batches": [1]}
    return {
        "suite": {"name": "tiny", "version": 1},
        "run": "1",
        "job": "timing",
        "measurement": "time",
        "cell": {
            "router": router,
            "model": {"vocabulary": 97, "width": 16, "layers": 2, "heads": 2},
            "train": {"sequence": 16, "batch": 1, "precision": "float32"},
            "time": time,
        },
        "repetition": 1,
        "plugins": [],
        "results": str(tmp_path / "results"),
        "threads": 1,
    }


def record_of(spec: dict[str, Any], **changes: Any) -> TimingRecord:
    """The record that the measurement appends."""
    result = run_timing(spec | changes, lambda event: None)
    (record,) = read_suite(Path(spec["results"])).timings
    assert (result["status"], result["error"]) == (record.status, record.error)
    return record


def failing_step(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def step(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(benchmark_case, "training_step", step)


def test_a_measurement_is_one_record(spec: dict[str, Any]) -> None:
    record = record_of(spec)
    assert (record.status, record.error, record.measurement) == ("ok", None, "time")
    names = [case["name"] for case in record.measured["cases"]]
    assert names == ["forward", "train", "prefill 8 x 1", "decode after 8 x 1"]


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (LACK, "oom", f"train: {SAID}"),
        (RuntimeError("broken"), "failed", "train raised RuntimeError: broken ("),
    ],
)
def test_a_case_that_fails_leaves_the_others_timed(
    error: Exception,
    status: str,
    sentence: str,
    spec: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_step(monkeypatch, error)
    record = record_of(spec)
    assert record.status == status
    assert record.error is not None
    assert record.error.startswith(sentence)
    assert record.asked_bytes == (2**31 if status == "oom" else None)
    assert [case["phase"] for case in record.measured["cases"]] == ["forward", "prefill", "decode"]
    assert ("Traceback" in capsys.readouterr().err) == (status == "failed")


def test_of_several_failed_cases_the_first_is_stated(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_step(monkeypatch, LACK)

    def read(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(benchmark_case, "read", read)
    record = record_of(spec)
    assert (record.status, record.asked_bytes) == ("failed", 2**31)
    assert record.error is not None
    assert record.error.startswith("prefill 8 x 1 raised RuntimeError: broken (")
    assert record.error.endswith(" (and 2 more)")


def test_a_model_that_does_not_fit_is_a_record(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(self: BenchmarkTarget) -> Any:
        raise LACK

    monkeypatch.setattr(BenchmarkTarget, "build", build)
    record = record_of(spec)
    assert (record.status, record.error, record.asked_bytes) == ("oom", SAID, 2**31)
    assert record.measured == {}


@pytest.mark.parametrize("measurement", ["training_memory", "inference_memory"])
def test_memory_is_recorded_with_its_prediction(measurement: str, spec: dict[str, Any]) -> None:
    record = record_of(spec, measurement=measurement)
    measured, predicted = record.measured["measured"], record.measured["predicted"]
    assert measured.keys() == predicted.keys()
    assert measured["parameters"] == predicted["parameters"]


def test_a_machine_is_described_without_a_router(spec: dict[str, Any]) -> None:
    cell = spec["cell"] | {"router": None}
    found = describe_machine(spec | {"cell": cell}, lambda event: None)["environment"]
    assert (found["threads"], found["dtype"]) == (1, "float32")


def test_a_peak_that_does_not_fit_is_an_answer_and_other_errors_are_raised(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = spec | {"measurement": "training_memory"}
    for error in (LACK, RuntimeError("broken")):

        def step(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(footprint, "training_step", step)
        if error is LACK:
            assert measure_peak(peak, lambda event: None) == {"peak": None, "error": SAID}
        else:
            with pytest.raises(RuntimeError, match="broken"):
                measure_peak(peak, lambda event: None)


def test_a_worker_measures_the_peak(spec: dict[str, Any], tmp_path: Path) -> None:
    found = run_worker(spec | {"job": "peak", "measurement": "training_memory"}, log=tmp_path / "log")
    assert found["error"] is None
    assert found["peak"] > 0


class Stage:
    """Notes what is measured."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    @contextlib.contextmanager
    def measuring(self, title: str) -> Any:
        self.titles.append(title)
        yield

    def check(self) -> None:
        pass


@pytest.fixture
def cell(spec: dict[str, Any], tmp_path: Path) -> Any:
    return SimpleNamespace(
        cell=spec["cell"],
        spec=spec,
        device=torch.device("cpu"),
        train=SimpleNamespace(compile="off"),
        measure=SimpleNamespace(timing_repeats=3),
        stage=Stage(),
        title="tiny/mod",
        router=SimpleNamespace(name="mod"),
        folder=tmp_path,
    )


def test_the_timing_step_times_training_with_all_threads(
    cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing_step, "thread_count", lambda: 2)
    before = torch.get_num_threads()
    metrics = timing_step.timing(None, cell)  # type: ignore[arg-type]
    assert torch.get_num_threads() == before
    assert cell.stage.titles == ["tiny/mod"]
    assert metrics.keys() == {"forward_seconds", "train_step_seconds"}
    for metric in metrics.values():
        assert metric.keys() == {"median", "iqr", "n", "stable", "loaded", "threads"}
        assert (metric["n"], metric["threads"]) == (3, 2)


def test_a_timing_that_fails_is_the_cells_error(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_step(monkeypatch, LACK)
    with pytest.raises(MemoryError, match="asked for 2,147,483,648 bytes"):
        timing_step.timing(None, cell)  # type: ignore[arg-type]
    failing_step(monkeypatch, RuntimeError("broken"))
    with pytest.raises(UserError, match=r"^router 'mod' train raised RuntimeError: broken"):
        timing_step.timing(None, cell)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "error", "sentence"),
    [
        (DiedError(-signal.SIGKILL, "killed"), MemoryError, "^measuring memory: killed"),
        (DiedError(2, "router 'mod': broken"), UserError, r"^router 'mod': broken \(while memory was"),
        (DiedError(-signal.SIGSEGV, "crashed"), RuntimeError, "^measuring memory failed: crashed$"),
        ({"peak": None, "error": SAID}, MemoryError, "^measuring memory: out of memory, asked for"),
    ],
)
def test_a_peak_that_is_not_measured_is_the_cells_error(
    outcome: Any, error: type[Exception], sentence: str, cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(memory_step, "run_worker", run)
    with pytest.raises(error, match=sentence) as raised:
        memory_step.memory(None, cell)  # type: ignore[arg-type]
    assert (failed_allocation(raised.value) is not None) == (error is MemoryError)


def test_the_memory_step_measures_the_cell_in_its_own_numerics(
    cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def run(spec: dict[str, Any], **_: Any) -> dict[str, Any]:
        asked.append(spec)
        return {"peak": 5, "error": None}

    monkeypatch.setattr(memory_step, "run_worker", run)
    metrics = memory_step.memory(None, cell)  # type: ignore[arg-type]
    assert metrics == {"peak_memory_bytes": {"median": 5, "iqr": None, "n": 1, "stable": None}}
    (spec,) = asked
    assert (spec["job"], spec["cell"]["time"]) == ("peak", {"deterministic": True})
