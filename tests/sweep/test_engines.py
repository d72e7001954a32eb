"""The script of a job array, and refusals, without Slurm; `tests/cluster` has a real one."""

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
from drive_engine import DATA, fake_job, fake_run, fakes_left
from small_suite import write_suite

import modbench
from modbench.cli.main import main
from modbench.cli.options import requested
from modbench.errors import UserError
from modbench.records.store import append_record
from modbench.sweep.job import RunJob, run_record
from modbench.sweep.ray import Ray
from modbench.sweep.slurm import Slurm, recorded_rate, time_limit
from modbench.train.schedule import Schedule


def jobs_of(folder: Path, *labels: str) -> list[RunJob]:
    return [fake_job(left, folder) for left in fakes_left(folder, list(labels))]


def command(place: Path, name: str, script: str) -> None:
    (place / "bin").mkdir(exist_ok=True)
    (place / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (place / "bin" / name).chmod(0o755)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose bin/ is first on the PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_script_is_one_array_over_a_list(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "MODBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    request = requested(["partition=gpu", "--gpus=1", "time=4:00:00"])
    script = Slurm(place / "s", request, workers=8).script(jobs_of(place / "s", "a", "b", "c"), "x1")
    assert script.splitlines() == [
        "#!/bin/sh",
        "#SBATCH --time=4:00:00",
        "#SBATCH --signal=B:TERM@120",
        "#SBATCH --partition=gpu",
        "#SBATCH --gpus=1",
        "#SBATCH --job-name=modbench-s-x1",
        "#SBATCH --array=0-2%8",
        f"#SBATCH --output={place}/s/slurm/x1/%a.txt",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"export PYTHONPATH={Path(modbench.__file__).parent.parent}",
        f"exec {sys.executable} -P -m modbench.sweep.slurm {place}/s/slurm/x1/jobs.txt "
        '"$SLURM_ARRAY_TASK_ID"',
    ]


def test_the_time_limit_follows_from_planned_flops_and_recorded_rates(place: Path) -> None:
    (job,) = jobs_of(place / "s", "a")
    assert time_limit([job], None) == 240
    job = replace(job, run=replace(job.run, schedule=Schedule(budgets=(10**15,))))
    end = {"budget": 1, "steps": 1, "tokens": 1, "flops": 10**12, "flops_nominal": 1, "audit": []}
    machine = {"cpu": None, "gpu": None, "threads": 1, "torch": "0"}
    made = run_record(
        fake_run("b").run,
        DATA,
        machine,
        "ok",
        None,
        datetime.now(UTC),
        ends=[end],
        seconds={"train": 2.0},
    )
    append_record(place / "s", made)
    assert recorded_rate(place / "s") == 5e11
    assert time_limit([job], 5e11) == 30 + 67  # 2 * 2000 s


def test_a_list_is_frozen_and_found_by_the_name_of_its_array(place: Path) -> None:
    command(place, "sbatch", f"cat > {place}/given; echo 12")
    command(place, "squeue", "true")
    jobs = jobs_of(place / "s", "a", "b", "c")
    slurm = Slurm(place / "s", {}, workers=0)
    said: list[str] = []
    assert slurm.submit(jobs, said.append) == jobs
    assert said[-1].startswith("slurm: array 12 of 3 tasks")
    (listed,) = (place / "s" / "slurm").glob("*/jobs.txt")
    assert listed.read_text().splitlines() == [str(job.folder) for job in jobs]
    given = (place / "given").read_text()
    assert given == listed.with_name("array.sh").read_text()
    # Another command finds two of them queued, next to an array that is none of ours.
    name = f"modbench-s-{listed.parent.name}"
    lines = (f"0 {name} 7_0", f"2 {name} 7_2", "1 theirs 8_1", f"N/A {name} 7")
    command(place, "squeue", "; ".join(f"echo '{line}'" for line in lines))
    second = Slurm(place / "s", {}, workers=0)
    assert second.alive() == {jobs[0].folder, jobs[2].folder}
    command(place, "scancel", f"echo $@ > {place}/cancelled")
    second.end(jobs[2].folder)
    assert (place / "cancelled").read_text() == "7_2\n"
    assert second.submit(jobs, said.append) == jobs[1:2]
    assert said[-1].startswith("slurm: array 12 of 1 task")
    assert second.alive() == {job.folder for job in jobs}
    command(place, "squeue", "exit 1")  # the controller is away: what was known counts
    second._asked = None
    assert second.alive() == {job.folder for job in jobs}


def refused(place: Path, capsys: pytest.CaptureFixture[str], *words: str, **train: object) -> str:
    write_suite(place, "tiny", "vanilla", train=train)
    assert main(["run", "suite.toml", *words]) == 2
    assert not (place / "my-results").exists()
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


def test_what_sbatch_refuses_is_refused_before_anything_runs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "sbatch: error: invalid partition specified: nope\\nallocation failure: no"
    command(place, "sbatch", f'echo "$@" > {place}/words; printf "{error}\\n" >&2; exit 1')
    said = refused(place, capsys, "--engine", "slurm", "--request", "partition=nope")
    assert "--request partition=nope: invalid partition specified: nope" in said
    assert "--test-only" in (place / "words").read_text()


def test_an_address_without_a_cluster_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    said = refused(place, capsys, "--engine", "ray")
    assert "RAY_ADDRESS is 127.0.0.1:1, and nothing answers there" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--request", "gpus=1"], "--request gpus is for --engine slurm or ray; --engine local has"),
        (["--engine", "slurm", "--request", "a=1", "a=2"], "--request a is given twice; give it once"),
        (["--engine", "slurm", "--request", "cpus-per-task=x"], "--request cpus-per-task=x: a whole"),
        (["--dry-run"], "--dry-run prints the script of --engine slurm; --engine local has none"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert refused(place, capsys, *words).startswith(f"modbench: {sentence}")


@pytest.mark.parametrize(
    "words",
    [("slurm", "gpus=1"), ("slurm", "gres=gpu:h100:1", "nodes=1"), ("ray", "num_gpus=1", "num_cpus=8")],
)
def test_a_request_for_fewer_gpus_than_a_run_has_processes_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    engine, *request = words
    words = ("--engine", engine, "--request", *request)
    said = refused(place, capsys, *words, batch=4, parallel={"data": 2})
    assert said.startswith(f"modbench: --request {request[0]}: [train] parallel has 2 processes")


def test_a_task_of_ray_asks_for_a_gpu_for_each_process_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, object] = {}
    ray = ModuleType("ray")
    ray.init = lambda **more: None  # type: ignore[attr-defined]
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 8, "GPU": 4}}]  # type: ignore[attr-defined]
    ray.remote = lambda **more: asked.update(more) or (lambda task: task)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Ray({}, workers=0, ranks=4).check()
    assert (asked["num_gpus"], asked["num_cpus"]) == (4, 1)
    with pytest.raises(UserError, match="num_gpus=8: a node of the cluster has at most 4"):
        Ray({}, workers=0, ranks=8).check()


@pytest.mark.parametrize(
    ("gpus", "used", "batch", "sentence"),
    [
        (1, 0, 4, "[train] parallel has 2 processes, one per GPU, and a run sees 1 here"),
        (4, 3, 4, "[train] parallel has 2 processes, one per GPU, and 3 of 4 GPUs here are in use"),
        (
            4,
            0,
            5,
            "suite suite.toml: [train] parallel has 2 processes; they must divide batch, which is 5",
        ),
    ],
)
def test_processes_of_a_run_without_a_gpu_or_a_sequence_of_their_own_are_refused(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    used: int,
    batch: int,
    sentence: str,
) -> None:
    apps = "".join(f"GPU-{number}, {4000 + number}\n" for number in range(used))
    command(place, "nvidia-smi", f"[ $1 = --id=0,1,2,3 ] && printf '{apps}'")
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said = refused(place, capsys, batch=batch, parallel={"data": 2})
    assert said.startswith(f"modbench: {sentence}")


def test_a_dry_run_prints_the_script_and_writes_no_result(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(place, "tiny", "vanilla", sweep={"budgets": [1e7], "seeds": [0, 1]})
    assert main(["run", "suite.toml", "--engine", "slurm", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("#!/bin/sh\n#SBATCH --time=240\n")
    assert "#SBATCH --array=0-1\n" in out
    assert "2 tasks of 2 runs left; nothing is submitted" in err
    assert not (place / "my-results").exists()
