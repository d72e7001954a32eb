"""`modbench time` with a stand-in for what measures: order, resumption, failures, machines."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import fake_worker
import pytest
from timing_suite import ISOFLOP, write_suite

from modbench.analysis.frames import plain_records
from modbench.cli.main import main
from modbench.errors import UserError
from modbench.records.record import TimingRecord
from modbench.records.store import read_suite
from modbench.report.times import Times, labels_of
from modbench.sweep import process, worker
from modbench.sweep import timings as verb
from modbench.sweep.lease import suite_lease
from modbench.sweep.request import RunRequest, TimeRequest
from modbench.sweep.rows import resolve
from modbench.sweep.run import run_suite
from modbench.sweep.suite import load_suite
from modbench.sweep.timings import KINDS, TimingPlan

Time = Callable[..., int]


@pytest.fixture
def time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Time:
    """Runs a suite with the given labels; ``tmp_path``/log has what was asked of the workers."""
    monkeypatch.setattr(worker, "JOBS", fake_worker.JOBS)
    monkeypatch.setattr(worker, "_fault", fake_worker.fault)
    machine = lambda rows, timed: fake_worker.environment(verb._threads(rows))  # noqa: E731
    monkeypatch.setattr(verb, "_machine", machine)
    monkeypatch.setattr(process, "COMMAND", (sys.executable, fake_worker.__file__))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))

    def run(*labels: str, change: tuple[str, str] = ("", ""), **arguments: object) -> int:
        write_suite(tmp_path, *labels)
        text = (tmp_path / "suite.toml").read_text()
        assert change[0] in text
        (tmp_path / "suite.toml").write_text(text.replace(*change) if change[0] else text)
        (tmp_path / "log").write_text("")
        return verb.time_suite(
            TimeRequest(
                name=str(tmp_path / "suite.toml"),
                results=tmp_path / "results",
                **arguments,  # type: ignore[arg-type]
            )
        )

    return run


def timings_of(folder: Path) -> list[TimingRecord]:
    return read_suite(folder).timings


def asked(place: Path) -> list[str]:
    return (place / "log").read_text().splitlines()


def test_each_repetition_begins_with_another_one_and_memory_comes_last(
    tmp_path: Path, time: Time
) -> None:
    assert time("a", "b") == 0
    words = asked(tmp_path)
    once = ["ceiling machine", "training a", "inference a", "training b", "inference b"]
    assert words[:15] == [*once, *once[1:], *once[:1], *once[2:], *once[:2]]
    assert words[15:] == [
        f"{kind}_memory {label}" for label in "ab" for kind in ("training", "inference")
    ]
    timings = timings_of(tmp_path / "results" / "fake")
    assert len({timing.session for timing in timings}) == 1
    assert len({timing.job for timing in timings}) == len(timings) == 19


@pytest.mark.processes
def test_every_process_has_the_machine_to_itself(tmp_path: Path, time: Time) -> None:
    assert time("a", repetitions=1) == 0
    assert not (tmp_path / "not alone").exists()


def test_what_is_done_is_not_done_again(tmp_path: Path, time: Time) -> None:
    folder = tmp_path / "results" / "fake"
    assert time("a", "b", repetitions=1, only=("a",)) == 0
    of_a = ["training a", "inference a", "training_memory a", "inference_memory a"]
    assert asked(tmp_path) == ["ceiling machine", *of_a]
    assert time("a", "b", repetitions=2) == 0
    of_b = [word.replace(" a", " b") for word in of_a]
    assert sorted(asked(tmp_path)) == sorted([*of_a[:2], *of_b, *of_b[:2], "ceiling machine"])
    assert time("a", "b", repetitions=2) == 0
    assert asked(tmp_path) == []
    assert len({timing.session for timing in timings_of(folder)}) == 1
    assert time("a", repetitions=1, again=True) == 0
    assert len(asked(tmp_path)) == 5
    assert len({timing.session for timing in timings_of(folder)}) == 2


def test_a_scheme_that_was_edited_is_not_pooled_with_what_it_was(tmp_path: Path, time: Time) -> None:
    """It alone is timed again, and the table shows what the suite has now."""
    folder = tmp_path / "results" / "fake"
    change = ('label = "b"', 'label = "b"\noptions.every = 1')
    assert time("a", "b", repetitions=1) == 0
    assert time("a", "b", repetitions=1, change=change) == 0
    assert sorted(asked(tmp_path)) == [
        *("inference b", "inference_memory b", "training b", "training_memory b")
    ]
    timings = timings_of(folder)
    assert len({timing.session for timing in timings}) == 1
    table = Times(timings, labels_of(read_suite(folder).suites))
    edited = {row["label"]: row["key"] for row in plain_records(table.cases)}
    (now,) = {
        timing.key
        for timing in timings
        if (timing.timed["router"] or {}).get("options", {}).get("every") == 1
    }
    assert edited["b"] == now
    assert {*table.cases["n"]} == {3}
    assert time("a", "b", repetitions=1, change=change) == 0
    assert asked(tmp_path) == []


def test_a_renamed_row_is_not_timed_again(tmp_path: Path, time: Time) -> None:
    assert time("a", "b", repetitions=1) == 0
    assert time("a", "c", repetitions=1) == 0
    assert asked(tmp_path) == []
    assert "| c |" in (tmp_path / "results" / "fake" / "timings.md").read_text()


def test_want_of_memory_is_a_result_and_the_others_go_on(tmp_path: Path, time: Time) -> None:
    assert time("a", "big", "c", repetitions=1) == 0
    statuses = {
        (timing.measures, timing.timed["router"]["name"]): (timing.status, timing.asked_bytes)
        for timing in timings_of(tmp_path / "results" / "fake")
        if timing.timed["router"] is not None
    }
    assert statuses["training", "mod"] == statuses["training_memory", "mod"] == ("oom", 77)
    assert statuses["training", "token_choice"] == ("ok", None)
    assert time("a", "big", "c", repetitions=1) == 0
    assert asked(tmp_path) == []


@pytest.mark.processes
def test_after_an_error_that_ended_the_gpu_another_process_goes_on(tmp_path: Path, time: Time) -> None:
    """Twice, and with one record in the end; the other processes come after it."""
    assert time("sticky", "b", repetitions=1) == 0
    words = asked(tmp_path)
    assert words[:5] == ["ceiling machine", *["training sticky"] * 3, "inference sticky"]
    assert len({*json.loads((tmp_path / "processes").read_text())}) == 3
    timings = timings_of(tmp_path / "results" / "fake")
    assert len({timing.job for timing in timings}) == len(timings) == 9


@pytest.mark.parametrize(("value", "gpus"), [("1", 1), ("true", 2), ("1", 0), ("0", 1), ("", 1)])
def test_times_of_blocking_launches_are_refused(
    value: str, gpus: int, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where there is a GPU, and before anything runs."""
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    if value in ("1", "true") and gpus:
        with pytest.raises(UserError, match="CUDA_LAUNCH_BLOCKING"):
            time("a", repetitions=1)
        assert asked(tmp_path) == []
    else:
        verb.refuse_blocking_launches()


@pytest.mark.parametrize("step", ["timing", "memory"])
def test_a_run_that_ends_with_times_of_blocking_launches_is_refused_before_it_trains(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    write_suite(tmp_path, "a")
    path = tmp_path / "suite.toml"
    path.write_text(f'{path.read_text()}\n[measure]\nsteps = ["train", "{step}"]\n')
    with pytest.raises(UserError, match="CUDA_LAUNCH_BLOCKING"):
        run_suite(RunRequest(name=str(path), results=tmp_path / "results"))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", ["run", "time"])
def test_a_suite_for_a_gpu_is_refused_without_one(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(tmp_path, "a")
    suite, folder = str(tmp_path / "suite.toml"), tmp_path / "results"
    assert main([command, suite, "--results", str(folder), "--set", "sweep.device=cuda"]) == 2
    assert "sweep.device=auto" in capsys.readouterr().err
    assert not folder.exists()


def test_what_failed_is_told_and_tried_again(
    tmp_path: Path, time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    assert time("a", "breaks", "c", repetitions=1) == 1
    said = capsys.readouterr().err
    assert "breaks, training 1 failed: " in said
    assert "ValueError: this is broken" in said
    assert "training c" in asked(tmp_path)
    assert time("a", "breaks", "c", repetitions=1) == 0
    assert asked(tmp_path) == ["training breaks"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("FAKE_CPU", "Another CPU"), ("MALLOC_TOP_PAD_", "77")],
)
def test_another_machine_or_setting_begins_another_session_and_goes_on_with_its_own(
    name: str, value: str, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results" / "fake"
    assert time("a", "b", repetitions=1, only=("a",)) == 0
    (mine,) = {timing.session for timing in timings_of(folder)}
    with monkeypatch.context() as other:
        other.setenv(name, value)
        assert time("a", "b", repetitions=1, only=("b",)) == 0
    assert time("a", "b", repetitions=1) == 0
    assert sorted(asked(tmp_path)) == [
        *("inference b", "inference_memory b", "training b", "training_memory b")
    ]
    page = (folder / "timings.md").read_text()
    assert f"Session {mine}; machine: cpu Imaginary CPU" in page
    assert "Another CPU" not in page


def test_other_code_begins_another_session(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert time("vanilla") == 0
    monkeypatch.setattr(verb, "code_sha256", lambda file: "0")
    for processes in (3 * 3 + 2, 0):
        assert time("vanilla") == 0
        assert len(asked(tmp_path)) == processes


def test_two_at_once_are_refused(tmp_path: Path, time: Time) -> None:
    with (
        suite_lease(tmp_path / "results" / "fake"),
        pytest.raises(UserError, match="another `modbench` is at work"),
    ):
        time("a")


def test_a_run_waits_for_another_that_measures(tmp_path: Path) -> None:
    said: list[str] = []
    held = threading.Event()

    def measure() -> None:
        with suite_lease(tmp_path):
            held.set()
            threading.Event().wait(0.5)

    other = threading.Thread(target=measure)
    other.start()
    held.wait()
    with suite_lease(tmp_path, said.append):
        assert said == [
            f"another `modbench` is at work in {tmp_path} and measures times; this one goes on once it "
            "has ended"
        ]


def test_budgets_and_seeds_are_timed_once(tmp_path: Path) -> None:
    write_suite(tmp_path, "a", "b")
    rows = resolve(load_suite(str(tmp_path / "suite.toml")))
    jobs = TimingPlan.of(rows, Path("nowhere")).jobs(KINDS, rows.suite.time.repetitions)
    timed = [job.timed for job in jobs if job.measures == "training_memory"]
    assert [of.router.name for of in timed if of.router] == ["vanilla", "mod"]
    train = timed[0].train
    assert (train.sequence, train.batch, train.precision) == (16, 1, "auto")
    assert len(jobs) == 3 * 5 + 4
    assert len({job.folder for job in jobs}) == len(jobs)


def test_every_shape_of_isoflop_grids_is_timed_once_and_a_new_run_ends(
    tmp_path: Path, time: Time
) -> None:
    assert time("a", repetitions=1, again=True, change=ISOFLOP) == 0
    grids = resolve(load_suite(str(tmp_path / "suite.toml"))).resolved["a"].grids
    shapes = {f"w{shape.width}" for grid in grids for shape in grid}
    assert len(shapes) > 5
    words = asked(tmp_path)
    assert sorted(word for word in words if word.startswith("training ")) == sorted(
        f"training {label}" for label in shapes
    )
    assert len({timing.session for timing in timings_of(tmp_path / "results" / "fake")}) == 1


@pytest.mark.slow
@pytest.mark.processes
def test_the_real_worker_gives_times_memory_and_ceilings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    write_suite(tmp_path, "dense", "depth")
    text = (tmp_path / "suite.toml").read_text()
    text = text.replace("repetitions = 3", "samples = 3\nwarm_up_seconds = 0")
    (tmp_path / "suite.toml").write_text(text)
    results = tmp_path / "results"
    name = str(tmp_path / "suite.toml")
    assert verb.time_suite(TimeRequest(name=name, results=results, repetitions=1)) == 0
    timings = timings_of(results / "fake")
    assert [timing.status for timing in timings] == ["ok"] * 9
    assert str(tmp_path) not in "".join(timing.line() for timing in timings)
    table = Times(timings, labels_of(read_suite(results / "fake").suites))
    depth = {row["case"]: row for row in plain_records(table.cases) if row["label"] == "depth"}
    assert list(depth)[:3] == ["forward", "train", "prefill 4 x 1"]
    for row in depth.values():
        assert row["flops_realised"] == row["flops_nominal"]
        assert row["balance"] == "forced"
        assert row["n"] == 3
        assert row["realised_efficiency"] is not None
        assert row["utilisation"] is not None
    assert len(table.ceilings)
    assert {*table.memory["phase"]} == {"training", "inference"}
