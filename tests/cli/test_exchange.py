"""Results folders and task files of other people: nothing is run, fetched or written elsewhere."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_records import replace
from small_suite import TEXT, suite_text, write_suite
from trained_runs import add_records, record_of, save_trained

from modbench.cli.main import main
from modbench.data.config import DataConfig
from modbench.errors import UserError
from modbench.evaluate.outside import outside
from modbench.evaluate.tasks.names import check_names
from modbench.model.shape import refuse_hub_code
from modbench.records.line import canonical_json, key_of, sha256
from modbench.records.record import MeasurementRecord, read_record

#: Python that says that it was run, and ends its process.
BAD = "import os\nfrom pathlib import Path\nPath('ran').touch()\nos._exit(0)\n"
TASK = """
task: bad
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: !function code.text
doc_to_choice: [" a", " b"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""
#: Commands that read records, for the suite "tiny" in the folder "theirs".
READS = {
    "report": "report tiny --results theirs --html",
    "compare": "compare theirs/tiny theirs/tiny",
    "verify": "verify --all --results theirs",
    "run": "run suite.toml --results theirs",
    "time": "time suite.toml --results theirs",
    "sample": "sample tiny/vanilla --prompt a --results theirs",
    "eval": "eval tiny/vanilla --tasks modbench_cloze --results theirs",
    "export": "export tiny/vanilla --to modbench --out out --results theirs",
}
WRITES = ("report", "run", "time")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a suite, a hostile folder of tasks, and results of the suite's run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    write_suite(tmp_path, "tiny", "vanilla")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "bad.yaml").write_text(TASK)
    (tasks / "code.py").write_text(BAD)
    (tmp_path / "items.jsonl").write_text('{"q": "x"}\n')
    add_records(tmp_path / "theirs", record_of("vanilla", "vanilla", 0))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("content")
    yield tmp_path
    assert not (tmp_path / "ran").exists()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious"]
    assert (tmp_path / "elsewhere" / "precious").read_text() == "content"


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which ``command`` ends, and its exit code is 2."""
    assert main(shlex.split(command)) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "tokenizing" not in line]
    assert len(lines) == 1, captured.err
    assert not set("\x1b\x07\x9b\r\b\f") & set(captured.out + captured.err)
    return lines[0]


def forge(change: Callable[[dict[str, Any]], object]) -> None:
    """Alter the run's record; its digest and its key are right."""
    (path,) = Path("theirs/tiny/records").glob("*.jsonl")
    lines = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "run":
            change(record)
            record["key"] = key_of(record["run"])
        unsigned = canonical_json({**record, "digest": ""})
        lines.append(unsigned.replace('"digest":""', f'"digest":"{sha256(unsigned)}"', 1))
    path.write_text("".join(f"{line}\n" for line in lines))


def link(records: Path) -> None:
    (records / "b.jsonl").symlink_to("/etc/passwd")


def fifo(records: Path) -> None:
    os.mkfifo(records / "b.jsonl")


def device(records: Path) -> None:
    (records / "b.jsonl").symlink_to("/dev/zero")


def huge(records: Path) -> None:
    (records / "b.jsonl").touch()
    os.truncate(records / "b.jsonl", 2**36)


def strange_name(records: Path) -> None:
    (records / "\x1b]0;x\x07.jsonl").touch()


def linked_records(records: Path) -> None:
    records.rename("mine-too")
    records.symlink_to(Path("mine-too").resolve())


def kernels(records: Path) -> None:
    forge(lambda record: record["environment"].update(kernels=5))


def folder_of_code(records: Path) -> None:
    hub = {
        "vocabulary": 9,
        "width": 8,
        "layers": 1,
        "code": "ab",
        "folder": str(Path("tasks").resolve()),
    }
    forge(lambda record: record["run"].update(model={**hub, "config": {"model_type": "llama"}}))


HOSTILE = {
    link: "b.jsonl: it is not a regular file",
    fifo: "b.jsonl: it is not a regular file",
    device: "b.jsonl: it is not a regular file",
    huge: "64 MB",
    strange_name: "control characters",
    linked_records: "link",
    kernels: "kernels",
    folder_of_code: "folder",
}
#: `report` leaves a damaged line out, and `run` reads keys and outcomes only.
CASES = [
    (hostile, command)
    for hostile in HOSTILE
    for command in READS
    if hostile not in (kernels, folder_of_code) or command not in ("report", "run")
]


@pytest.mark.parametrize(("hostile", "command"), CASES)
def test_hostile_records_are_one_sentence(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    hostile: Callable[[Path], None],
    command: str,
) -> None:
    hostile(place / "theirs" / "tiny" / "records")
    assert HOSTILE[hostile] in refused(READS[command], capsys)


@pytest.mark.parametrize("command", WRITES)
@pytest.mark.parametrize("name", ["runs", ".lock", "leaderboard.md"])
def test_a_link_in_a_folder_that_is_written_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    target = place / "elsewhere" if name == "runs" else place / "elsewhere" / "precious"
    (place / "theirs" / "tiny" / name).symlink_to(target)
    assert f"tiny/{name}: it is not a regular file, or a link" in refused(READS[command], capsys)


def named_outside(place: Path, data: DataConfig) -> None:
    """Results of a run on ``data``, with weights, that was scored on the hostile task."""
    result = record_of("vanilla", "vanilla", 0)
    run = replace(result.run, data=data)
    record = replace(result.record, run=run.as_json(), key=run.key)
    settings = {"task": "bad", "include": "tasks"}
    measured = {"run": run.key, "budget": 1, "measures": "downstream", "settings": settings}
    made = {name: getattr(record, name) for name in ("code", "environment", "started", "finished")}
    made |= {
        "key": key_of(measured),
        "measurement": measured,
        "result": {},
        "status": "ok",
        "error": None,
    }
    add_records(place / "theirs", replace(result, record=record))
    with (place / "theirs" / "tiny" / "records" / "a.jsonl").open("a") as file:
        file.write(f"{MeasurementRecord.made(**made).line()}\n")
    save_trained(place / "theirs", f"tiny/{run.key}", [])


@pytest.mark.parametrize(
    "data",
    [
        DataConfig(source="text", path="not read", tokenizer="bytes"),
        DataConfig(source="huggingface", name="not/fetched", tokenizer="bytes"),
        DataConfig(tokenizer="not_read.json"),
    ],
)
def test_what_only_a_record_names_is_not_used(
    place: Path, capsys: pytest.CaptureFixture[str], data: DataConfig
) -> None:
    (place / "theirs" / "tiny" / "records" / "a.jsonl").unlink()
    named_outside(place, data)
    name = data.path or data.name or data.tokenizer
    sentence = refused(READS["verify"], capsys)
    assert sentence.endswith(f"--allow {shlex.join([name, 'tasks', 'bad'])}")
    assert "Python" in sentence
    assert refused(f"{READS['verify']} --allow {shlex.quote(name)}", capsys).endswith("tasks bad")
    assert refused(READS["eval"], capsys).endswith(f"--allow {shlex.join([name])}")
    for command in ("report", "compare", "sample", "export"):
        assert main(shlex.split(READS[command])) == 0
    capsys.readouterr()
    next((place / "theirs").rglob("modbench.json")).unlink()
    for command in ("sample", "export"):
        assert "modbench.json" in refused(READS[command], capsys)


def modbench(words: str, **streams: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "modbench", *shlex.split(words)]
    return subprocess.run(command, text=True, check=False, **streams)


def test_python_of_a_task_that_ends_its_process_fails_its_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "bad.yaml").write_text(TASK)
    (tmp_path / "tasks" / "code.py").write_text(BAD)
    (tmp_path / "items.jsonl").write_text('{"q": "x"}\n')
    asked = {"downstream": ["bad"], "downstream_include": "tasks", "steps": ["train", "downstream"]}
    (tmp_path / "suite.toml").write_text(suite_text("tiny", "vanilla", measure=asked))
    (tmp_path / "text.txt").write_text(TEXT)
    done = modbench("run suite.toml --results mine", stderr=subprocess.PIPE)
    assert (done.returncode, "failed" in done.stderr) == (1, True)
    assert (tmp_path / "ran").exists()


def test_progress_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    write_suite(tmp_path, "tiny", "vanilla")
    with open("/dev/full", "w") as full:
        assert modbench("run nowhere.toml", stderr=full).returncode == 2
    reading, writing = os.pipe()
    os.close(reading)
    done = modbench("run suite.toml --results mine", stdout=subprocess.PIPE, stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    assert "leaderboard.md" in done.stdout


def test_task_files_include_others_but_not_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("include: [b.yaml, c.yaml]\n")
    (tmp_path / "b.yaml").write_text("task: mine\ntag: first\n")
    (tmp_path / "c.yaml").write_text("tag: second\n")
    check_names(["mine", "second"], include=tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "c.yaml").write_text("include: a.yaml\n")
    with pytest.raises(UserError, match="Include cycle"):
        check_names(["other"], include=tmp_path / "sub" / "..")


def test_a_name_is_announced_with_all_that_is_done_with_it() -> None:
    named = outside(DataConfig(), [{"task": "bad", "include": "tasks"}])
    assert "Python" in named["tasks"]
    assert "items may be fetched" in named["bad"]


@pytest.mark.parametrize("value", ["x/y", {"": "x/y"}, {"text": ["x/y"]}])
def test_an_implementation_on_the_hub_is_refused_wherever_it_stands(value: Any) -> None:
    config = {"attn_implementation": value}
    for stated in (config, {"text_config": config}):
        with pytest.raises(UserError, match="hub"):
            refuse_hub_code(stated)
    refuse_hub_code({"attn_implementation": {"": "eager"}, "name": "x/y"})


def test_control_characters_with_short_escapes_are_shown(place: Path) -> None:
    forge(lambda record: record["environment"].update(cpu="a\r\b\fb"))
    (path,) = Path("theirs/tiny/records").glob("*.jsonl")
    run = next(line for line in path.read_text().splitlines() if '"kind":"run"' in line)
    assert read_record(run).environment["cpu"] == r"a\x0d\x08\x0cb"
