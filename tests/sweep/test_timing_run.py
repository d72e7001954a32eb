"""`modbench time` with a stand-in for what measures: order, resumption, failures, machines."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from timing_suite import ISOFLOP, write_suite

from modbench.errors import UserError
from modbench.records.record import TimingRecord
from modbench.records.store import read_suite
from modbench.report.timing.table import TimingTable
from modbench.sweep import timings as verb
from modbench.sweep import worker
from modbench.sweep.crash import KILLED
from modbench.sweep.engine import Engine
from modbench.sweep.lock import suite_lock
from modbench.sweep.rows import resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.timings import timing_cells, timing_jobs
from modbench.timing import system_load

Time = Callable[..., int]


@pytest.fixture
def time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Time:
    """Runs a suite with the given labels; ``tmp_path``/log has what was asked of the workers."""
    fake = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
    monkeypatch.setattr(worker, "COMMAND", fake)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))

    def run(*labels: str, change: tuple[str, str] = ("", ""), **arguments: object) -> int:
        write_suite(tmp_path, *labels)
        text = (tmp_path / "suite.toml").read_text()
        assert change[0] in text
        (tmp_path / "suite.toml").write_text(text.replace(*change) if change[0] else text)
        (tmp_path / "log").write_text("")
        return verb.time_suite(
            str(tmp_path / "suite.toml"),
            results=tmp_path / "results",
            **arguments,  # type: ignore[arg-type]
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
    assert words[:9] == [
        *("ceiling machine", "time a", "time b"),
        *("time a", "time b", "ceiling machine"),
        *("time b", "ceiling machine", "time a"),
    ]
    assert words[9:] == [
        f"{kind}_memory {label}" for label in "ab" for kind in ("training", "inference")
    ]
    timings = timings_of(tmp_path / "results" / "fake")
    assert len({timing.run for timing in timings}) == 1
    assert len({timing.job for timing in timings}) == len(timings) == 13


def test_every_process_has_the_machine_to_itself(tmp_path: Path, time: Time) -> None:
    assert time("a", repetitions=1) == 0
    assert not (tmp_path / "not alone").exists()


def test_what_is_done_is_not_done_again(tmp_path: Path, time: Time) -> None:
    folder = tmp_path / "results" / "fake"
    assert time("a", "b", repetitions=1, only=("a",)) == 0
    assert asked(tmp_path) == ["ceiling machine", "time a", "training_memory a", "inference_memory a"]
    assert time("a", "b", repetitions=2) == 0
    assert sorted(asked(tmp_path)) == sorted(
        ["time a", "time b", "time b", "ceiling machine", "training_memory b", "inference_memory b"]
    )
    assert time("a", "b", repetitions=2) == 0
    assert asked(tmp_path) == []
    assert len({timing.run for timing in timings_of(folder)}) == 1
    assert time("a", repetitions=1, again=True) == 0
    assert len(asked(tmp_path)) == 4
    assert len({timing.run for timing in timings_of(folder)}) == 2


@pytest.mark.parametrize(
    "change",
    [('label = "b"', 'label = "b"\noptions.every = 1'), ("threads = 1", "threads = 1\nsamples = 4")],
    ids=["options", "shape"],
)
def test_a_scheme_that_was_edited_is_not_pooled_with_what_it_was(
    tmp_path: Path, time: Time, change: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert time("a", "b", repetitions=1) == 0
    capsys.readouterr()
    assert time("a", "b", repetitions=1, change=change) == 0
    assert len(asked(tmp_path)) == 7  # all of it
    assert "of another machine, other settings, options, shapes or code" in capsys.readouterr().err
    assert len({timing.run for timing in timings_of(tmp_path / "results" / "fake")}) == 2
    assert time("a", "b", repetitions=1, change=change) == 0
    assert asked(tmp_path) == []


@pytest.mark.parametrize(("threads", "used"), [(3, 3), (0, 7)])
def test_threads_are_those_of_the_suite_or_one_to_each_core(
    threads: int, used: int, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_load, "thread_count", lambda: 7)
    assert time("a", repetitions=1, change=("threads = 1", f"threads = {threads}")) == 0
    timings = timings_of(tmp_path / "results" / "fake")
    assert {timing.environment["threads"] for timing in timings} == {used}


def test_too_few_samples_are_refused_wherever_they_are_asked_for(tmp_path: Path, time: Time) -> None:
    assert time("a", repetitions=1) == 0
    with pytest.raises(UserError, match="time repetitions is 1 and samples 2; they must multiply"):
        time("a", repetitions=1, change=("threads = 1", "threads = 1\nsamples = 2"))
    assert asked(tmp_path) == []


def test_a_shape_that_a_router_cannot_take_is_refused_before_anything_is_timed(
    tmp_path: Path, time: Time
) -> None:
    with pytest.raises(UserError, match="router 'mixture_of_recursions': layers is 2 with 2 recursions"):
        time("a", "b", change=('router = "mod"', 'router = "mixture_of_recursions"'))
    assert asked(tmp_path) == []


def test_an_unfinished_run_is_gone_on_with(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, ended = Engine._settle, []

    def settle(self: Engine, *arguments: object) -> object:
        ended.append(1)
        found = right(self, *arguments)  # type: ignore[arg-type]
        if len(ended) == 2:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_settle", settle)
        with pytest.raises(KeyboardInterrupt):
            time("a", repetitions=3)
    assert asked(tmp_path) == ["ceiling machine", "time a"]
    assert time("a", repetitions=3) == 0
    assert len(asked(tmp_path)) == 6
    (run,) = {timing.run for timing in timings_of(tmp_path / "results" / "fake")}
    assert run in (tmp_path / "results" / "fake" / "timings.md").read_text()


def test_want_of_memory_is_a_result_and_the_others_go_on(tmp_path: Path, time: Time) -> None:
    assert time("a", "big", "c", repetitions=1) == 0
    statuses = {
        (timing.measurement, timing.cell["router"]["label"]): (timing.status, timing.asked_bytes)
        for timing in timings_of(tmp_path / "results" / "fake")
        if timing.cell["router"] is not None
    }
    assert statuses["time", "big"] == statuses["training_memory", "big"] == ("oom", 77)
    assert statuses["time", "c"] == ("ok", None)
    assert time("a", "big", "c", repetitions=1) == 0
    assert asked(tmp_path) == []


def test_what_failed_is_told_and_tried_again(
    tmp_path: Path, time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    assert time("a", "breaks", "c", repetitions=1) == 1
    said = capsys.readouterr().err
    assert "breaks, time 1 failed: exit code 1: ValueError: this is broken; its log: " in said
    assert "time c" in asked(tmp_path)
    assert time("a", "breaks", "c", repetitions=1) == 0
    assert asked(tmp_path) == ["time breaks"]


def test_a_kill_by_the_kernel_is_want_of_memory(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert time("a", "killed", repetitions=1) == 1
    kills = iter(range(100))
    monkeypatch.setattr(worker, "out_of_memory_kills", lambda: next(kills))
    assert time("a", "killed", repetitions=1) == 0
    by_hand, by_kernel = (
        timing
        for timing in timings_of(tmp_path / "results" / "fake")
        if timing.measurement == "time" and timing.cell["router"]["label"] == "killed"
    )
    assert by_hand.status == "failed"
    assert (by_kernel.status, by_kernel.error) == ("oom", KILLED)


def test_another_machine_begins_another_run(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert time("a", "b", repetitions=1, only=("a",)) == 0
    monkeypatch.setenv("FAKE_CPU", "Another CPU")
    assert time("a", "b", repetitions=1) == 0
    assert "of another machine, other settings, options" in capsys.readouterr().err
    assert len(asked(tmp_path)) == 7
    page = (tmp_path / "results" / "fake" / "timings.md").read_text()
    assert "Another CPU" in page
    assert "Imaginary" not in page
    assert "Other runs of this suite: 1; runs aren't compared." in page


@pytest.mark.parametrize(
    ("name", "value"),
    [("FAKE_CPU", "Another CPU"), ("FAKE_PYTHON", "3.12.1"), ("MALLOC_TOP_PAD_", "77")],
)
def test_another_machine_or_setting_begins_another_run_and_goes_on_with_its_own(
    name: str, value: str, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results" / "fake"
    assert time("a", "b", repetitions=1, only=("a",)) == 0
    (mine,) = {timing.run for timing in timings_of(folder)}
    with monkeypatch.context() as other:
        other.setenv(name, value)
        assert time("a", "b", repetitions=1, only=("b",)) == 0
    assert time("a", "b", repetitions=1) == 0
    assert sorted(asked(tmp_path)) == ["inference_memory b", "time b", "training_memory b"]
    page = (folder / "timings.md").read_text()
    assert f"Run {mine}; machine: cpu Imaginary CPU" in page
    assert "Another CPU" not in page


def test_other_code_begins_another_run(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert time("vanilla") == 0
    monkeypatch.setattr(verb, "code_sha256", lambda file: "0")
    for processes in (8, 0):
        assert time("vanilla") == 0
        assert len(asked(tmp_path)) == processes


def test_two_at_once_are_refused(tmp_path: Path, time: Time) -> None:
    with (
        suite_lock(tmp_path / "results" / "fake"),
        pytest.raises(UserError, match="another `modbench` is at work"),
    ):
        time("a")


def test_no_repetition_is_refused(time: Time) -> None:
    with pytest.raises(UserError, match="repetitions is 0"):
        time("a", repetitions=0)


def jobs_of(suite: str) -> list[dict]:
    """The specifications of all processes."""
    rows = resolve(load_suite(suite))
    cells = timing_cells(rows)
    return [job.spec for job in timing_jobs(cells, rows, Path("results"), "run", {})]


def test_budgets_and_seeds_are_timed_once(tmp_path: Path) -> None:
    write_suite(tmp_path, "a", "b")
    jobs = jobs_of(str(tmp_path / "suite.toml"))
    cells = [job["cell"] for job in jobs if job["measurement"] == "training_memory"]
    assert [cell["router"]["label"] for cell in cells] == ["a", "b"]
    assert cells[0]["train"] == {"sequence": 16, "batch": 1, "precision": "auto"}
    assert len(jobs) == 3 * 3 + 4


def test_the_gpu_suite_times_two_sizes_each_with_its_ceilings() -> None:
    jobs = jobs_of("gpu")
    ceilings = [job for job in jobs if job["measurement"] == "ceiling" and job["repetition"] == 1]
    timed = [job for job in jobs if job["measurement"] == "time" and job["repetition"] == 1]
    labels = {job["cell"]["router"]["label"] for job in timed}
    assert len(ceilings) == 2
    assert len(labels) == len(timed)
    assert {label.rpartition("/")[2] for label in labels} == {"124M", "350M"}
    assert {job["cell"]["router"]["name"] for job in timed} == {
        *("vanilla", "token_choice", "expert_choice"),
        *("mod", "mode_staged", "mode_integrated"),
    }


def test_every_shape_of_isoflop_grids_is_timed_once_and_a_new_run_ends(
    tmp_path: Path, time: Time
) -> None:
    assert time("a", repetitions=1, again=True, change=ISOFLOP) == 0
    grids = resolve(load_suite(str(tmp_path / "suite.toml"))).resolved["a"].grids
    shapes = {f"a/w{shape['width']}" for grid in grids for shape in grid}
    assert len(shapes) > 5
    words = asked(tmp_path)
    assert sorted(word for word in words if word.startswith("time ")) == sorted(
        f"time {label}" for label in shapes
    )
    assert len({timing.run for timing in timings_of(tmp_path / "results" / "fake")}) == 1


@pytest.mark.slow
def test_the_real_worker_gives_times_memory_and_ceilings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    write_suite(tmp_path, "dense", "depth")
    text = (tmp_path / "suite.toml").read_text().replace("repetitions = 3", "samples = 3\nwarm_up = 0")
    (tmp_path / "suite.toml").write_text(text)
    results = tmp_path / "results"
    assert verb.time_suite(str(tmp_path / "suite.toml"), results=results, repetitions=1) == 0
    timings = timings_of(results / "fake")
    assert [timing.status for timing in timings] == ["ok"] * 7
    assert str(tmp_path) not in "".join(timing.line() for timing in timings)
    table = TimingTable(timings)
    depth = {row.case: row for row in table.cases if row.label == "depth"}
    assert list(depth)[:3] == ["forward", "train", "prefill 4 x 1"]
    for row in depth.values():
        assert row.flops_realised == row.flops_nominal
        assert row.balance == "forced"
        assert row.n == 3
        assert row.realised_efficiency is not None
        assert row.utilisation is not None
    assert table.ceilings
    assert {row["phase"] for row in table.memory} == {"training", "inference"}
