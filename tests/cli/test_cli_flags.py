"""Flags given twice (several values are taken together, a single one is refused) or given no number."""

from pathlib import Path

import pytest

from modbench.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run quick --workers 1 --workers 2", "--workers is given twice, as 1 and as 2; give it once"),
        ("audit mod --seed 1 --seed=1", "--seed is given twice, as 1 and as 1; give it once"),
        ("flops --router mod --kv-heads 1 --kv_heads 2", "--kv-heads is given twice, as 1 and as 2"),
        ("time quick --again --no-again", "--again is given twice, as --again and as --no-again"),
        ("plan --router mod --tokens 1B --tokens 2B", "--tokens is given twice, as 1B and as 2B"),
        (
            "plan --router mod --budget 1e20 --tokens 1B --tokens-per-parameter 20",
            "--tokens and --tokens-per-parameter both say how many tokens; leave one out",
        ),
        (
            "plan --router mod --tokens 1B --tokens-per-parameter 7",
            "--tokens-per-parameter needs --budget",
        ),
        ("sample a/b --prompt hi --top-p 1 --top-p .5", "--top-p is given twice, as 1 and as .5"),
        ("report --results a --results b", "--results is given twice, as a and as b"),
        ("data prepare --source text --source text", "--source is given twice, as text and as text"),
        ("flops gate --golden a --golden b", "--golden is given twice, as a and as b"),
        ("run quick --plugin gone.py --plugin b.py", "plugin gone.py: there is no such file"),
        ("time quick --only mdo --only mod", "no row of the suite is called 'mdo'"),
        (
            "audit mod --option capacity=0.5 --option every=1 --option capacity=0.25",
            "--option capacity is given twice, as 0.5 and as 0.25; give it once",
        ),
        ("sample quick/mod", "sample needs --prompt, one or more; see `modbench sample --help`"),
        ("plan --tokens 1B --router", "plan needs --router, one or more; see `modbench plan --help`"),
    ],
)
def test_a_single_value_given_twice_is_refused_in_one_sentence(
    arguments: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("modbench: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("several", "once"),
    [
        (
            "--router mod --option capacity=0.5 --option every=1",
            "--router mod --option capacity=0.5 every=1",
        ),
        ("--router mod --router=vanilla", "--router mod vanilla"),
        ("--hf a.json --format csv --hf b.json", "--hf a.json b.json --format csv"),
    ],
)
def test_a_flag_of_several_values_takes_them_however_they_are_given(
    several: str,
    once: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('{"model_type": "llama"}')
    said = []
    for words in (several, once):
        assert main(["flops", *words.split()]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("verb", "target", "flag"),
    [
        ("run quick", "modbench.sweep.run.run_suite", "plugins"),
        ("time quick", "modbench.sweep.timings.time_suite", "plugins"),
        ("audit mod", "modbench.measure.audit.command.run_audit", "plugins"),
    ],
)
def test_plugins_come_together(
    verb: str, target: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(target, lambda *_, **options: taken.append(options[flag]) or 0)
    assert main([*verb.split(), "--plugin", "a.py", "b.py", "--plugin=c.py"]) == 0
    assert taken == [(Path("a.py"), Path("b.py"), Path("c.py"))]


def test_flops_of_a_suite_has_a_row_for_a_plugin_s_router(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "joins.py").write_text(
        "from dataclasses import dataclass\n"
        "from modbench.routing.registry import register_router\n"
        "from modbench.routers.vanilla import Vanilla\n"
        '@register_router("joins_a_suite")\n'
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Joins(Vanilla): pass\n"
    )
    words = ["flops", "--suite", "quick", "--plugin", str(tmp_path / "joins.py"), "--format", "csv"]
    assert main(words) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines() if ",total," in line]
    spent = {row[0]: row[7] for row in rows}
    assert list(spent)[-1] == "joins_a_suite"
    assert spent["joins_a_suite"] == spent["vanilla"]


def test_a_prompt_may_begin_with_dashes_and_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(
        "modbench.sweep.sample.sample_run", lambda run, prompts, **_: taken.extend(prompts) or []
    )
    assert main(["sample", "a/b", "--prompt=--tokens", "--prompt", "", "x y", "--prompt=--tokens"]) == 0
    assert taken == ["--tokens", "", "x y", "--tokens"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("audit mod --seed abc", "--seed is 'abc'; it must be a whole number"),
        ("time quick --repetitions 2.5", "--repetitions is '2.5'; it must be a whole number"),
        ("audit mod --width it's", '--width is "it\'s"; it must be a whole number'),
        ("plan --router mod --peak-tflops x", "--peak-tflops is 'x'; it must be a number"),
        ("sample a/b --prompt c --top-p all", "--top-p is 'all'; it must be a number"),
    ],
)
def test_what_is_no_number_is_named_with_its_flag(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"modbench: {said}\n"
