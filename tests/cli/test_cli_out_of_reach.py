"""Sizes beyond reach, folders in place of files, too short a text: a sentence before anything runs."""

from pathlib import Path

import pytest

from modbench.cli.main import main

SUITE = """
[suite]
name = "short"
[model]
width = 16
layers = 2
heads = 2
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
sequence = 16
batch = 2
[sweep]
budgets = [1e9]
seeds = [0]
[[schemes]]
router = "vanilla"
"""
RAISES = """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

class Values(Block):
    def forward(self, x_BTD, context):
        return x_BTD * x_BTD.sum().item()

@register_router("values")
@dataclass(frozen=True, kw_only=True)
class AsksForValues(Router):
    def build_layer(self, model, layer):
        return Values(model, layer)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "text.txt").write_text("".join(f"Line {n} of a text.\n" for n in range(300)))
    (tmp_path / "short.toml").write_text(SUITE)
    (tmp_path / "wide.toml").write_text(SUITE.replace("batch = 2", "batch = 10_000_000"))
    (tmp_path / "values.py").write_text(RAISES)
    (tmp_path / "deep.json").write_text('{"model_type": "llama", "num_hidden_layers": 10000000}')
    (tmp_path / "negative.json").write_text('{"model_type": "llama", "hidden_size": -5}')
    (tmp_path / "begun" / "quick" / "records").mkdir(parents=True)
    (tmp_path / "begun" / "quick" / "records" / "a.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "flops --router mod --layers 100000",
            "model layers is 100000; it must lie between 1 and 10,000",
        ),
        (
            "flops --router mod --batch 10000000",
            "batch is 10000000; it must lie between 1 and 1,000,000",
        ),
        (
            "flops --hf deep.json --sequence 100000000",
            "sequence is 100000000; it must lie between 1 and",
        ),
        (
            "flops --hf deep.json",
            "deep.json: config num_hidden_layers is 10000000; it must be 10,000 or",
        ),
        ("flops --hf negative.json --sequence 0", "sequence is 0; it must lie between 1 and 10,000,000"),
        ("flops --hf negative.json", "negative.json: config hidden_size is -5; it must be 1 or more"),
        (
            "flops --router values --plugin values.py --profile",
            "the model raised RuntimeError on the meta",
        ),
        ("flops gate --golden .", "FLOP table . can't be read (Is a directory); name a file"),
        (
            "flops gate --accept --golden gone/x.json",
            "can't be written (No such file or directory); name a",
        ),
        (
            "plan --router mod --tokens 1B --micro-batch 10000000",
            "--micro-batch is 10000000; it must be",
        ),
        (
            "plan --router mod --budget 1e20 --tokens-per-parameter 1e300",
            "--tokens-per-parameter is 1e+300; it must be above 0, and 1,000,000,000 or less",
        ),
        (
            "plan --router mod --size 124M --tokens 1B --gpu mine --peak-tflops 1 --memory-gb 1e300",
            "--memory-gb is 1e+300; it must lie between 1e-06 and 1e+09",
        ),
        (
            f"plan --router mod --size 124M --tokens 1B --gpus 1{'0' * 320}",
            "000; it must be 1,000,000,000 or fewer",
        ),
        (
            "plan --router mod --size 124M --budget 1e59 --tokens 1",
            "budget is 1.000e+59 training FLOPs; plans go up to 1e+30: give a smaller one",
        ),
        ("audit vanilla --layers 1 --width 100000000", "out of memory, asked for "),
        ("run wide.toml", "train batch is 10000000; it must be 1,000,000 or less"),
        ("run short.toml", "yields 0 cloze items, but modbench_cloze needs 100; give more text, or"),
        ("report --results begun", "results folder begun holds no records"),
    ],
)
def test_one_sentence_and_nothing_runs(
    arguments: str, sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("modbench: ")
    assert sentence in line
    assert not list(place.rglob("spec.json"))
    assert not (place / "gone").exists()


@pytest.mark.parametrize("words", ["--convention palmm", "--convention palm --profile"])
def test_what_no_file_is_to_blame_for_names_none(
    words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flops", "--hf", "negative.json", *words.split()]) == 2
    assert capsys.readouterr().err.startswith("modbench: convention 'palm")


def test_a_suite_named_twice_is_reported_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "begun" / "quick" / "records" / "a.jsonl").write_text("{}\n")
    monkeypatch.setattr("modbench.report.page.write_report", lambda folder, **_: [folder])
    assert main(["report", "quick", "quick", "--results", "begun"]) == 0
    assert capsys.readouterr().out.splitlines() == ["begun/quick"]


LONG, DEEP = "9" * 5000, "[" * 100_000


@pytest.mark.parametrize(
    ("arguments", "name", "content", "sentence"),
    [
        ("run x.toml", "x.toml", SUITE.replace("1e9", LONG), "suite x.toml isn't TOML ("),
        ("run x.toml", "x.toml", f"suite = {DEEP}", "suite x.toml isn't TOML ("),
        (
            "data prepare --source text --path x.jsonl",
            "x.jsonl",
            f'{{"text": "a", "id": {LONG}}}',
            "x.jsonl:1 is not JSON (",
        ),
        ("data prepare --source text --path x.jsonl", "x.jsonl", DEEP, "x.jsonl:1 is not JSON ("),
        ("flops --hf x.json", "x.json", DEEP, "config x.json is no JSON ("),
        ("flops gate --golden x.json", "x.json", DEEP, "FLOP table x.json is no JSON ("),
        (f"flops --router mod --option capacity={LONG}", "x", "", "option 'capacity' is '999"),
    ],
    ids=["toml-long", "toml-deep", "jsonl-long", "jsonl-deep", "config", "flop-table", "option"],
)
def test_what_python_can_not_parse_for_its_length_or_depth_gets_the_sentence_of_its_kind(
    place: Path,
    arguments: str,
    name: str,
    content: str,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (place / name).write_text(content)
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
