"""The command line: help, lists, mistakes and how a command ends."""

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
from modbench.report.page import Report

SUITE = suite_text("tiny", "vanilla")


def python(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """`python WORDS` in ``cwd``."""
    environment = {**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60)


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
        "router.toml": SUITE.replace('"vanilla"', '"vanila"'),
        "metric.toml": SUITE.replace('"tiny"', '"tiny"\nrank_by = "heldout_los"'),
        "twins.toml": SUITE + '[[schemes]]\nrouter = "vanilla"\n',
        "escape.toml": SUITE.replace('"tiny"', '"../tiny"'),
        "broke.toml": suite_text("tiny", "vanilla", sweep={"budgets": [1000]}),
        "gone.toml": SUITE.replace("text.txt", "gone.txt"),
        "image.toml": "\x89PNG",
        "bert.json": '{"model_type": "bert"}',
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
        ("run quikc", "suite 'quikc' is not known; did you mean 'quick'?"),
        ("run typo.toml", "suite typo.toml has no 'trian'; did you mean 'train'?"),
        ("run image.toml", "suite image.toml isn't TOML"),
        ("run metric.toml", "rank_by is 'heldout_los', which can't rank; did you mean 'heldout_loss'?"),
        ("run twins.toml", "two have the label 'vanilla'"),
        ("run escape.toml", "name is '../tiny'; it becomes a folder's name"),
        ("run router.toml", "router 'vanila' is not known; did you mean 'vanilla'?"),
        ("run broke.toml", "[sweep] budgets: budget 1000 is smaller than one training step"),
        ("run gone.toml", "gone.txt"),
        ("run tiny.toml --results text.txt", "the results folder text.txt/tiny can't be written"),
        ("run tiny.toml --results corrupt", "corrupt/tiny/records/a.jsonl, line 1: no valid record"),
        ("run tiny.toml --plugin raises.py --only raises", "plugin raises.py raised ZeroDivisionError"),
        ("run tiny.toml --plugin gone.py --plugin raises.py", "plugin gone.py: there is no such file"),
        ("run tiny.toml --only mod", "no row of the suite is called 'mod'"),
        ("run tiny.toml --workers -1", "--workers is -1"),
        ("report", "results folder my-results holds no records"),
        ("report tinny --results corrupt", "has no suite 'tinny'; did you mean 'tiny'?"),
        ("data prepare --source text --path gone.txt --tokenizer bytes", "gone.txt"),
        ("flops", "flops takes either --router or --hf and was given none"),
        ("flops --router mod --hf text.txt", "was given both"),
        ("flops --router mid", "router 'mid' is not known; did you mean 'mod'?"),
        ("flops --router mod:hlaf", "router 'mod' has no preset 'hlaf'; did you mean 'half'?"),
        ("flops --router mod --option capacity", "--option capacity: it must be NAME=VALUE"),
        ("flops --router mod --option capcity=0.5", "has no 'capcity'; did you mean 'capacity'?"),
        (
            "flops --router mod --option every=1 capacity=0.5 --option capacity=1",
            "--option capacity is given twice; give it once",
        ),
        ("flops --router mod --size 12M", "size '12M' is not known; did you mean '124M'?"),
        ("flops --router mod --width 30", "model width 30 is not a multiple of the head width 32"),
        ("flops --router mod --batch 0", "lengths (): give one or more sequences"),
        ("flops --router mod --phase train --past 4", "nothing is cached in phase 'train'"),
        ("flops --router mod --convention palm --profile", "convention 'palm' is a formula"),
        ("flops --hf gone.json", "config gone.json can't be read"),
        ("flops --hf text.txt", "config text.txt can't be read"),
        ("flops --hf bert.json", "model_type 'bert' is no causal language model"),
        (
            "flops --hf negative.json",
            "negative.json: config hidden_size is -5; it should be greater than",
        ),
        ("flops --hf negative.json --convention palmm", "convention 'palmm' is not known; did you mean"),
        ("flops --hf bert.json --width 8", "--width has no effect with --hf; leave it out"),
        ("flops gate --golden .", "FLOP table . can't be read ([Errno 21] Is a directory"),
        ("plan --tokens 1B", "plan takes either a suite or --router and was given none"),
        ("plan tiny.toml --router mod", "plan takes either a suite or --router and was given both"),
        ("plan tiny.toml --gpus 2", "--gpus has no effect with a suite; leave it out"),
        ("plan tiny.toml --tokens 1e9", "--tokens has no effect with a suite; leave it out"),
        ("plan --router vanilla --seeds 1", "--set and --seeds need a suite; leave them out"),
        ("plan tiny.toml --option capacity=1", "--option has no effect with a suite; leave it out"),
        ("plan tiny.toml --convention full", "--convention has no effect with a suite; leave it out"),
        ("plan tyni.toml", "suite tyni.toml: there is no such file"),
        ("plan gone.toml", "gone.txt"),
        ("plan --router mod", "a plan needs tokens, 1 or more, or a budget"),
        (
            "plan --router mod --tokens 1B --tokens-per-parameter 7",
            "--tokens-per-parameter needs --budg",
        ),
        ("plan --router mod --tokens many", "tokens 'many' is not a whole number"),
        ("plan --router mod --tokens 1B --gpu h1000", "GPU 'h1000' is not known; did you mean 'h100'?"),
        ("plan --router mod --tokens 1B --utilisation 2", "utilisation is 2.0"),
        ("plan --router mod --tokens 1B --gpus 8 --shard 3", "shard is 3 of 8 gpus"),
        ("plan --router mod --budget 1", "the budget is too small for 'mod'"),
        ("sample tiny --prompt hi", "run 'tiny' must be SUITE/LABEL"),
        ("sample tiny/mod", "sample needs --prompt"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2_and_changes_nothing(
    place: Path, arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
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
        ("run quick --workers two", "--workers"),
        ("flops --router mod --phase trian", "'trian'"),
        ("flops gate --foo", "modbench flops gate --help"),
        ("list router", "'router'"),
        ("data prepare --tokenizer bytes --vocabulary 300", "data vocabulary is 300"),
    ],
)
def test_what_the_parser_rejects_ends_with_exit_code_2_and_no_traceback(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
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
    capsys: pytest.CaptureFixture[str],
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
def test_help_of_a_command_shows_an_example_of_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert f"Example: modbench {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [*COMMANDS, "flops gate", "data prepare"])
def test_help_describes_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    starts = [n for n, line in enumerate(lines) if re.match(r"[│ ] -(-[a-z]|h,)", line)]
    assert starts
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        option = " ".join(lines[start:end])
        words = re.sub(r"\(default: .*?\)|--\S+|\{.*?\}", " ", option)
        assert re.search(r"[a-z]{2,} +[a-z]{2,}", words), option


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"modbench {modbench.__version__}\n"


def test_list_names_routers_suites_and_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = {line.strip() for line in capsys.readouterr().out.splitlines()}
    assert {"routers", "mod", "mode_staged", "suites", "quick", "metrics", "heldout_loss"} <= lines
    assert main(["list", "suites"]) == 0
    lines = {line.strip() for line in capsys.readouterr().out.splitlines()}
    assert "quick" in lines
    assert "heldout_loss" not in lines


def test_plan_solves_shapes_of_equal_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --router vanilla mod --size 1M --budget 1e15 --gpus 2 --format json"
    assert main(words.split()) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["budget"] == 10**15
    for scheme in plan["schemes"]:
        assert 0.99 * 10**15 < scheme["training_flops"] <= 10**15
        assert scheme["memory"]["total"] > 0
        seconds = scheme["days"] * 86_400
        assert seconds == pytest.approx(scheme["training_flops"] / (2 * 989.4e12 * 0.4))


def test_a_suite_named_twice_is_reported_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("modbench.report.page.write_report", lambda folder, **_: Report([folder], {}))
    assert main(["report", "tiny", "tiny", "--results", "corrupt"]) == 0
    assert capsys.readouterr().out.splitlines() == ["corrupt/tiny"]


@pytest.mark.parametrize(
    ("command", "backend", "says"),
    [
        (
            "run quick",
            "modbench.sweep.run.run_suite",
            "stopped; run the same command again to continue",
        ),
        ("audit mod", "modbench.audit.command.run_audit", "stopped"),
    ],
)
def test_only_a_command_that_resumes_says_so_when_it_is_stopped(
    command: str,
    backend: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, stop)
    assert main(command.split()) == 130
    assert capsys.readouterr().err == f"modbench: {says}\n"


@pytest.mark.parametrize(
    ("command", "backend"),
    [
        ("run quick", "modbench.sweep.run.run_suite"),
        ("time quick", "modbench.sweep.timings.time_suite"),
        ("audit mod", "modbench.audit.command.run_audit"),
    ],
)
def test_plugins_of_repeated_flags_are_taken_together(
    command: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(backend, lambda *_, plugins, **__: taken.append(plugins) or 0)
    assert main([*command.split(), "--plugin", "a.py", "b.py", "--plugin=c.py"]) == 0
    assert taken == [(Path("a.py"), Path("b.py"), Path("c.py"))]


def test_a_prompt_may_begin_with_dashes_and_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(
        "modbench.cli.sample.sample_run", lambda run, prompts, **_: taken.extend(prompts) or []
    )
    assert main(["sample", "a/b", "--prompt=--tokens", "--prompt", "", "x y", "--prompt=--tokens"]) == 0
    assert taken == ["--tokens", "", "x y", "--tokens"]
