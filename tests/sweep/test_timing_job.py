"""Measurements of `modbench time`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.records.record import PROTOCOL, TimingRecord
from modbench.records.run import RouterCode, Timed
from modbench.records.store import read_suite
from modbench.sweep import timing_job
from modbench.sweep.job import TimeJob
from modbench.sweep.lease import Lease
from modbench.sweep.timing_job import run_timing
from modbench.timing import benchmark_case, clock, system_load
from modbench.timing.benchmark_case import BenchmarkTarget
from modbench.train.config import TrainConfig

LACK = torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")
SAID = "out of memory, asked for 2,147,483,648 bytes (Tried to allocate 2.00 GiB.)"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TimeJob:
    """A measurement of a tiny model on a machine that need not be quiet."""
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(system_load, "QUIET_SECONDS", 0.0)
    timed = Timed(
        router=RouterCode(name="mod", options={}),
        model=ModelConfig(vocabulary=97, width=16, layers=2, heads=2),
        train=TrainConfig(sequence=16, batch=1, precision="float32"),
    )
    time = {
        "samples": 3,
        "warm_up_seconds": 0,
        "prefill": [8],
        "decode_past": [8],
        "decode_batches": [1],
    }
    return TimeJob(
        suite="tiny",
        label="mod",
        title="mod, training 1",
        folder=tmp_path / "job",
        results=tmp_path / "results",
        session="1",
        measures="training",
        timed=timed,
        time=time,
        repetition=1,
        machine={},
    )


def ends(job: TimeJob) -> dict[str, Any]:
    """What the process of ``job`` returns."""
    with Lease(job.folder).held() as lease:
        return run_timing(job, lambda event: None, lease, began=0.0)


def record_of(job: TimeJob, **changes: Any) -> TimingRecord:
    """The record that the measurement stores."""
    ends(replace(job, **changes))
    (record,) = read_suite(job.results).timings
    return record


def test_a_machine_without_a_gpu_measures_no_suite_for_one(job: TimeJob) -> None:
    with pytest.raises(UserError, match="GPU"):
        ends(replace(job, device="cuda"))


def failing_step(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def step(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(benchmark_case, "training_step", step)


@pytest.mark.parametrize(
    ("kind", "cases"),
    [("training", ["forward", "train"]), ("inference", ["prefill 8 x 1", "decode after 8 x 1"])],
)
def test_a_measurement_is_one_record(kind: str, cases: list[str], job: TimeJob) -> None:
    record = record_of(job, measures=kind)
    assert (record.status, record.error, record.measures) == ("ok", None, kind)
    assert [case["name"] for case in record.measured["cases"]] == cases
    assert record.environment["deterministic"]  # as runs are


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
    job: TimeJob,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_step(monkeypatch, error)
    record = record_of(job)
    assert record.status == status
    assert record.error is not None
    assert record.error.startswith(sentence)
    assert record.asked_bytes == (2**31 if status == "oom" else None)
    assert [case["phase"] for case in record.measured["cases"]] == ["forward"]
    assert ("Traceback" in capsys.readouterr().err) == (status == "failed")


def test_a_model_that_does_not_fit_is_a_record(job: TimeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: BenchmarkTarget) -> Any:
        raise LACK

    monkeypatch.setattr(BenchmarkTarget, "build", build)
    record = record_of(job)
    assert (record.status, record.error, record.asked_bytes) == ("oom", SAID, 2**31)
    assert record.measured == {}


@pytest.mark.parametrize("kind", ["training_memory", "inference_memory"])
def test_memory_is_recorded_by_part(kind: str, job: TimeJob) -> None:
    parts = record_of(job, measures=kind).measured["measured"]
    peak = parts.pop("peak")
    assert peak == sum(parts.values())
    assert parts["parameters"] > 0


@pytest.mark.parametrize("kind", ["training", "training_memory"])
def test_lack_of_memory_next_to_another_process_on_the_gpu_is_tried_again(
    kind: str, job: TimeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(self: BenchmarkTarget) -> Any:
        raise LACK

    monkeypatch.setattr(BenchmarkTarget, "build", build)
    monkeypatch.setattr(timing_job, "gpu_processes", lambda: ["process 7 (40000 MiB)"])
    record = record_of(job, measures=kind)
    assert (record.status, record.asked_bytes) == ("failed", None)
    assert "process 7 (40000 MiB)" in (record.error or "")


def test_what_an_error_left_undone_is_handed_on(job: TimeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a record; the process that goes on stores that of both."""
    right = timing_job.measured_times
    monkeypatch.setattr(timing_job, "measured_times", lambda *given: right(*given) | {"next": 1})
    result = ends(job)
    assert not job.results.exists()
    assert [case["phase"] for case in result["earlier"]["cases"]] == ["forward", "train"]
    monkeypatch.setattr(timing_job, "measured_times", right)
    record = record_of(job, earlier=json.loads(json.dumps(result["earlier"])))
    assert record.status == "ok"
    assert record.protocol == PROTOCOL
    assert [case["phase"] for case in record.measured["cases"]] == ["forward", "train", "train"]


def test_the_machine_of_a_record_is_that_before_an_error_of_the_gpu(
    job: TimeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch may find no GPU after it."""
    gpus = ["Imaginary GPU"]
    right = timing_job.environment
    monkeypatch.setattr(timing_job, "environment", lambda dtype: right(dtype) | {"gpu": gpus[-1]})

    def case(of: Any, *_: Any) -> dict[str, Any]:
        if of.name == "train":
            gpus.append("none")
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return {}

    monkeypatch.setattr(clock, "_case", case)
    record = record_of(job)
    assert (record.status, record.environment["gpu"]) == ("failed", "Imaginary GPU")
