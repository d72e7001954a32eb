"""Words that a command line gets wrong: what was typed stands in the sentence, and what is near it."""

from pathlib import Path

import pytest

from modbench.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("runn", "'runn' is no command of modbench; did you mean 'run'?"),
        ("data prepar", "'prepar' is no command of modbench data; did you mean 'prepare'?"),
        ("flops --router mod --format jso", "invalid choice 'jso' for --format; did you mean 'json'?"),
        ("run quick --foo", "Unrecognized options: --foo; For full helptext, run modbench run --help"),
        ("data prepare --foo", "For full helptext, run modbench data prepare --help"),
        ("flops gate --foo", "For full helptext, run modbench flops gate --help"),
        ("run cache", "suite cache is a folder; give the path of a TOML file"),
        ("run ./cache", "suite ./cache is a folder; give the path of a TOML file"),
        ("plan --router mod --tokens 1B --gpu v9 --memory-gb 9", "give both --peak-tflops and --memory"),
        (
            "plan --router mod --tokens 1B --memory-gb 0",
            "--memory-gb is 0.0; it must lie between 1e-06 and 1e+09",
        ),
        ("plan --router mod --tokens 1B --expert-parallel 0", "--expert-parallel is 0; it must be 1"),
        ("plan --router mod --tokens 1B --shard 4 --expert-parallel 6", "--shard is 4 and --expert-par"),
        ("plan --router mod --tokens 1B --batch 7", "--batch is 7 tokens; it must be a multiple of"),
    ],
)
def test_a_sentence_has_what_was_typed_and_what_is_near(
    arguments: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


@pytest.mark.parametrize("command", ["run", "time"])
def test_an_empty_name_of_a_suite_is_said_to_be_empty(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, ""]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the suite's name is empty; known: " in line
    assert "quick" in line
    assert line.endswith("; or give a file's path")


def test_help_says_how_to_ask_for_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "modbench --version" in capsys.readouterr().out
