"""The command line: help, lists, mistakes and how a command ends."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_suite import suite_text

import modbench
from modbench.cli.main import COMMANDS, main

Capture = pytest.CaptureFixture[str]
SUITE = suite_text("tiny", "vanilla")


def python(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """`python WORDS` in ``cwd``."""
    environment = {**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def files_below(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".lock" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a suite, a text, and plugins and suites that are wrong."""
    for name, content in {
        "tiny.toml": SUITE,
        "text.txt": "All happy families are alike. " * 400,
        "raises.py": "1 / 0",
        "typo.toml": SUITE.replace("[train]", "[trian]"),
        "twins.toml": SUITE + '[[schemes]]\nrouter = "vanilla"\n',
        "broke.toml": suite_text("tiny", "vanilla", sweep={"budgets": [1000]}),
        "negative.json": '{"model_type": "llama", "hidden_size": -5}',
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "corrupt" / "tiny" / "records").mkdir(parents=True)
    (tmp_path / "corrupt" / "tiny" / "records" / "a.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run tyni.toml", "suite tyni.toml: there is no such file"),
        ("run typo.toml", "suite typo.toml has no 'trian'; did you mean 'train'?"),
        ("run twins.toml", "two have the label 'vanilla'"),
        ("run broke.toml", "[sweep] budgets: budget 1000 is smaller than one training step"),
        ("run tiny.toml --results text.txt", "the results folder text.txt/tiny can't be written"),
        ("run tiny.toml --results corrupt", "corrupt/tiny/records/a.jsonl, line 1: no valid record"),
        ("run tiny.toml --plugin raises.py --only raises", "plugin raises.py raised ZeroDivisionError"),
        ("run tiny.toml --only mod", "no row of the suite is called 'mod'"),
        ("report", "results folder my-results holds no records"),
        ("report tinny --results corrupt", "tinny is no folder of results"),
        ("report corrupt/tinny", "did you mean 'corrupt/tiny'? known: corrupt/tiny"),
        ("report corrupt/tiny/mod", "a report is of a whole suite; name its folder corrupt/tiny"),
        ("flops", "flops takes either --router or --hf and was given none"),
        ("flops --router mid", "router 'mid' is not known; did you mean 'mod'?"),
        (
            "flops --router mod --option every=1 capacity=0.5 --option capacity=1",
            "--option capacity is given twice; give it once",
        ),
        ("flops --router mod --phase train --past 4", "nothing is cached in phase 'train'"),
        (
            "flops --hf negative.json",
            "negative.json: config hidden_size is -5; it should be greater than",
        ),
        ("flops gate --golden .", "FLOP table . can't be read ([Errno 21] Is a directory"),
        ("plan tiny.toml --gpu h200", "--gpu has no effect without --price; leave it out"),
        ("plan tiny.toml --option every=1", "--option has no effect without --router; leave it out"),
        ("plan tiny.toml --price 2 --gpu h1000", "GPU 'h1000' is not known; did you mean 'h100'?"),
        ("plan --router mod", "plan --router needs --budget"),
        (
            "plan --router mod --budget 1e15 --price 2",
            "--price, --detect, --noise, --seeds and --only need a suite",
        ),
        (
            "plan --router mod --budget 1e15 --set model.layer=2",
            "--set model has no 'layer'; did you mean 'layers'?",
        ),
        ("plan --router mod --budget 1e15 --set train.batch=2", "it must be model.KEY=VALUE"),
        ("sample tiny --prompt hi", "run 'tiny' is no folder with model.safetensors, and tiny is no"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2_and_changes_nothing(
    place: Path, arguments: str, sentence: str, capsys: Capture
) -> None:
    corrupt = files_below(place / "corrupt")
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("modbench: ")
    assert sentence in line
    assert files_below(place / "corrupt") == corrupt
    assert not list(place.rglob("spec.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run", "SUITE"),
        ("run quick --wrokers 2", "--wrokers"),
        ("data prepare --tokenizer bytes --vocabulary 300", "data vocabulary is 300"),
    ],
)
def test_what_the_parser_rejects_ends_with_exit_code_2_and_no_traceback(
    arguments: str, words: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_python_m_modbench_prints_the_sentence_and_exits_with_2(place: Path) -> None:
    done = python("-m", "modbench", "run", "typo.toml", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("modbench: suite typo.toml")


def test_an_unknown_command_is_one_sentence_and_no_command_prints_the_overview(
    capsys: Capture,
) -> None:
    assert main(["rnu", "quick"]) == 2
    assert "there is no command 'rnu'; did you mean 'run'?" in capsys.readouterr().err
    assert main([]) == 2
    without = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == without
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z].*\.$", without, flags=re.MULTILINE), command


@pytest.mark.parametrize("command", [*COMMANDS, "flops gate"])
def test_help_of_a_command_shows_an_example_of_it(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert f"Example: modbench {command}" in capsys.readouterr().out


def test_version_is_the_packages(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"modbench {modbench.__version__}\n"


def test_plan_solves_shapes_of_equal_budgets(capsys: Capture) -> None:
    words = "plan --router vanilla mod --budget 1e15 --set model.layers=4 --format json"
    assert main(words.split()) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["budget"] == 10**15
    for scheme in plan["schemes"]:
        assert 0.99 * 10**15 < scheme["flops"] <= 10**15
        assert scheme["model"]["vocabulary"] == 2048
    assert main(words.replace("json", "table").split()) == 0
    assert re.search(r"\nmod +\d+ .* 99\.\d\d%|100\.00%", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "backend", "says"),
    [
        ("run quick", "sweep.run.run_suite", "stopped; run the same command again to continue"),
        ("audit mod", "audit.findings", "stopped"),
    ],
)
def test_only_a_command_that_resumes_says_so_when_it_is_stopped(
    command: str, backend: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"modbench.{backend}", stop)
    assert main(command.split()) == 130
    assert capsys.readouterr().err == f"modbench: {says}\n"


def test_plugins_of_repeated_flags_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    backend = "modbench.sweep.run.run_suite"
    monkeypatch.setattr(backend, lambda request: taken.append(request.plugins) or 0)
    assert main(["run", "quick", "--plugin", "a.py", "b.py", "--plugin=c.py"]) == 0
    assert taken == [(Path("a.py"), Path("b.py"), Path("c.py"))]


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m modbench list | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert (done.stdout, done.stderr) == ("routers\n", "")


@pytest.mark.parametrize("file", ["cache/tokens", None])
def test_a_full_disk_gets_one_sentence(
    file: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)

    monkeypatch.setattr("modbench.sweep.run.run_suite", refuse)
    assert main(["run", "quick"]) == 2
    said = f"modbench: {file or 'the output'}: No space left on device\n"
    assert capsys.readouterr().err == said


def test_gpus_have_the_numbers_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    main(["--version"])
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
