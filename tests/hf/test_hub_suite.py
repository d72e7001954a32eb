"""Rows of a suite that are models of transformers: keys, bad input, and a mixed suite end to end."""

import csv
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from mixed_suite import SUITE

import modbench
from modbench.cli.main import main
from modbench.errors import UserError
from modbench.hf.model import HubModel
from modbench.hf.models import model_of, outline_of
from modbench.model.context import Context
from modbench.model.shape import TRANSFORMERS, HubConfig
from modbench.records.run import Run
from modbench.records.store import read_suite
from modbench.sweep.rows import resolve
from modbench.sweep.run_job import RunWork
from modbench.sweep.suite import Suite, load_suite
from modbench.sweep.wanted import expand

LLAMA = {
    "model_type": "llama",
    "vocab_size": 999,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("llama.json", LLAMA)


def write(path: str, config: dict[str, Any]) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(json.dumps(config))


def parse(text: str = SUITE) -> Suite:
    Path("suite.toml").write_text(text)
    return load_suite("suite.toml")


def runs(text: str = SUITE) -> dict[str, Run]:
    return {wanted.label: wanted.run for wanted in expand(resolve(parse(text)))}


def saved(folder: str, **changed: Any) -> Path:
    """A folder with random weights, as `save_pretrained` writes it."""
    keys = {key: value for key, value in LLAMA.items() if key not in ("model_type", "dtype")}
    config = transformers.LlamaConfig(**{**keys, "vocab_size": 512, **changed})
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return Path(folder)


def test_a_mixed_suite_is_run_and_ranked_in_one_table() -> None:
    Path("suite.toml").write_text(SUITE)
    assert main(["run", "suite.toml", "--results", "out"]) == 0
    with open("out/mixed/leaderboard.csv") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"vanilla", "mod", "Llama"}
    assert len({row["comparison"] for row in rows.values()}) == 1
    assert rows["Llama"]["router"] == TRANSFORMERS
    for label, row in rows.items():
        assert 0.9 < float(row["budget_spent"]) <= 1, label
        assert float(row["heldout_loss"]) > 0
    assert rows["Llama"]["minus_dense"]
    assert float(rows["Llama"]["kv_cache_share"]) == 1.0
    records = read_suite(Path("out/mixed"))
    (audit,) = (
        record for record in records.audits.values() if record.scheme["router"]["name"] == TRANSFORMERS
    )
    verdicts = {finding.name: finding.verdict for finding in audit.audit}
    asked = {name for name, verdict in verdicts.items() if verdict == "passed"}
    assert asked == {"causal", "batch-invariant", "decode parity", "count"}
    timed = [timing for timing in records.timings if timing.timed["model"].get("config")]
    assert {(timing.measures, timing.status) for timing in timed} == {
        ("training", "ok"),
        ("training_memory", "ok"),
    }
    model, tokenizer = modbench.load("out/mixed/Llama")
    assert isinstance(model, HubModel)
    with torch.no_grad():
        text_BT = torch.tensor([tokenizer.encode("Some text")])
        assert model(text_BT, Context(selection="causal")).isfinite().all()
    assert main(["run", "suite.toml", "--results", "out"]) == 0  # what is recorded is not run again
    assert len(read_suite(Path("out/mixed")).timings) == len(records.timings)


def test_random_weights_take_the_vocabulary_of_the_data() -> None:
    shape = runs()["Llama"].model
    assert isinstance(shape, HubConfig)
    assert (shape.vocabulary, shape.width, shape.layers, shape.weights) == (512, 32, 2, None)
    assert shape.config["vocab_size"] == 512
    assert shape.config["bos_token_id"] is None
    assert "dtype" not in shape.config


def test_a_key_follows_from_the_config_and_not_from_its_path() -> None:
    first = runs()["Llama"]
    write("moved/config.json", {**LLAMA, "vocab_size": 7, "transformers_version": "9"})
    moved = runs(SUITE.replace("llama.json", "moved"))["Llama"]
    assert moved.key == first.key
    write("llama.json", {**LLAMA, "rope_theta": 500.0})
    assert runs()["Llama"].key != first.key
    assert "moved" not in json.dumps(moved.as_json())
    assert Run.of(json.loads(json.dumps(moved.as_json()))).key == moved.key


def test_weights_of_a_folder_are_trained_on_and_are_in_the_key() -> None:
    folder = saved("weights")
    text = SUITE.replace("llama.json", "weights")
    run = runs(text)["Llama"]
    shape = run.model
    assert isinstance(shape, HubConfig)
    assert shape.weights
    assert "weights" in run.as_json()["model"]
    assert run.timed.key == runs(SUITE.replace("llama.json", "weights/config.json"))["Llama"].timed.key
    model = model_of(shape, TRANSFORMERS, {}, seed=3)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, HubModel)
    assert all(
        torch.equal(value, model.inner.state_dict()[name]) for name, value in theirs.state_dict().items()
    )
    work: Any = SimpleNamespace(run=run, device="cpu")
    assert RunWork.fresh_model(work).embedding.weight.equal(model.embedding.weight)
    untrained = RunWork.fresh_model(work, random=True)  # whose scores stand next to the trained model's
    assert not untrained.embedding.weight.equal(model.embedding.weight)
    with torch.no_grad():
        theirs.lm_head.weight.add_(1)
    theirs.save_pretrained(folder)
    assert runs(text)["Llama"].key != run.key
    with pytest.raises(UserError, match="have changed since the run was planned"):
        model_of(shape, TRANSFORMERS, {})


@pytest.mark.parametrize("words", [["--price", "2"], []])
def test_a_row_with_weights_is_planned(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With a router of ours, too."""
    saved("weights")
    text = SUITE.replace("llama.json", "weights")
    text += '[[schemes]]\nlabel = "routed"\nrouter = "mod"\nmodel = { hf = "weights" }\n'
    Path("suite.toml").write_text(text)
    assert main(["plan", "suite.toml", "--results", "out", "--format", "json", *words]) == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    parts = {part["scheme"]: part for part in planned["parts"]}
    assert set(parts) == {"vanilla", "mod", "Llama", "routed"}
    assert all(0.9 * 4e8 < part["flops"] <= 4e8 for part in parts.values())
    assert ("gpu_hours" in planned) == bool(words)


def test_a_whole_suite_may_be_of_one_model_with_rows_of_implementations() -> None:
    write(
        "mixtral.json",
        {**LLAMA, "model_type": "mixtral", "num_local_experts": 2, "num_key_value_heads": 4},
    )
    head, _, _ = SUITE.partition("[[schemes]]")
    text = head.replace("width = 32\nlayers = 2\nheads = 4", 'hf = "mixtral.json"')
    text += '[[schemes]]\nlabel = "eager"\nmodel = { experts = "eager" }\n'
    text += '[[schemes]]\nlabel = "grouped"\nmodel = { experts = "grouped_mm" }\n'
    eager, grouped = runs(text)["eager"], runs(text)["grouped"]
    assert isinstance(eager.model, HubConfig)
    assert eager.model.experts == "eager"
    assert eager.timed.key != grouped.timed.key


def bad(**changed: Any) -> dict[str, Any]:
    return {**LLAMA, **changed}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (bad(model_type="t5", is_encoder_decoder=True), "'t5' is an encoder-decoder"),
        (bad(model_type="mine", auto_map={"AutoConfig": "a.B"}), "is code of its own"),
        (bad(attn_implementation="a/b"), "implementation on the Hugging Face hub"),
        (bad(max_position_embeddings=16), "its context is 16 tokens, and \\[train\\] sequence is 32"),
        (bad(num_attention_heads=5), "num_attention_heads, 5, must divide it"),
        ({"model_type": "llama"}, "states no hidden_size"),
    ],
)
def test_a_config_that_is_no_row_is_refused_before_anything_runs(
    config: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("llama.json", config)
    Path("suite.toml").write_text(SUITE)
    assert main(["run", "suite.toml", "--results", "out"]) == 2
    error = capsys.readouterr().err
    assert not Path("out").exists()
    with pytest.raises(UserError, match=sentence):
        runs()
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "config",
    [
        bad(model_type="jetmoe", num_key_value_heads=2, kv_channels=8, num_local_experts=4),
        bad(model_type="roberta", is_decoder=True),
        bad(model_type="openai-gpt", n_embd=32, n_layer=2, n_head=4, n_positions=64),
        bad(model_type="fuyu"),
        bad(model_type="modernbert-decoder"),
    ],
    ids=lambda config: config["model_type"],
)
def test_a_family_that_can_not_be_a_row_leaves_the_others(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write("llama.json", config)
    Path("suite.toml").write_text(SUITE)
    assert main(["plan", "suite.toml", "--format", "json"]) == 2
    out, error = capsys.readouterr()
    (sentence,) = error.splitlines()
    assert "'Llama'" in sentence
    assert f"'{config['model_type']}'" in sentence
    assert [part["scheme"] for part in json.loads(out)["parts"]] == ["vanilla", "mod"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('hf = "llama.json"', 'hf = "nowhere"', "nowhere.*can't be read"),
        ('hf = "llama.json"', 'hf = "pickled"', "pytorch_model.bin are pickled"),
        ('hf = "llama.json"', 'hf = "unsharded"', "has model.safetensors.index.json and no safetensors"),
        ('hf = "llama.json"', 'hf = "gguf"', "has model.gguf and no safetensors"),
        ('hf = "llama.json"', 'hf = "quantised"', "its weights are quantised"),
        (
            'hf = "llama.json"',
            'hf = "narrow"',
            "have 7 token ids, and .* \\[data\\] has 512",
        ),
        ('hf = "llama.json"', 'hf = "llama.json", width = 64', "model has no 'width'"),
        ('hf = "llama.json"', 'hf = "llama.json", experts = "eager"', "llama.json is a dense model"),
        ('label = "Llama"', 'label = "Llama"\noptions = { every = 2 }', "options, and no router"),
        ("[sweep]", '[[shapes]]\nlabel = "a"\n[sweep]', "\\[\\[shapes\\]\\] gives sizes"),
    ],
)
def test_keys_that_name_no_model_are_refused(old: str, new: str, sentence: str) -> None:
    write("pickled/config.json", LLAMA)
    Path("pickled/pytorch_model.bin").touch()
    for name in ("unsharded/model.safetensors.index.json", "gguf/model.gguf"):
        write(f"{Path(name).parent}/config.json", LLAMA)
        Path(name).touch()
    write("quantised/config.json", bad(quantization_config={}))
    Path("quantised/model.safetensors").touch()
    write("narrow/config.json", bad(vocab_size=7))
    Path("narrow/model.safetensors").touch()
    with pytest.raises(UserError, match=sentence):
        parse(SUITE.replace(old, new))


def test_experts_of_odd_widths_are_computed_one_after_the_other() -> None:
    experts = {**LLAMA, "model_type": "mixtral", "num_local_experts": 3}
    experts |= {"num_experts_per_tok": 1, "num_key_value_heads": 4}
    write("llama.json", {**experts, "intermediate_size": 50})
    model = runs()["Llama"].model
    assert isinstance(model, HubConfig)
    assert model.experts == "eager"
    built = outline_of(model, TRANSFORMERS, {})
    assert built.inner.config._experts_implementation == "eager"
    with pytest.raises(UserError, match="'grouped_mm', and 50 is no multiple of 8"):
        parse(SUITE.replace('hf = "llama.json"', 'hf = "llama.json", experts = "grouped_mm"'))
    write("llama.json", experts)
    model = runs()["Llama"].model
    assert isinstance(model, HubConfig)
    assert model.experts is None
    write("llama.json", {**experts, "output_router_logits": True, "sliding_window": 32})
    with pytest.raises(UserError, match=r"output_router_logits asks for .* sliding window of 32"):
        parse()
    write("llama.json", {**experts, "output_router_logits": True, "sliding_window": 33})
    parse()


def test_damaged_and_missing_weights_are_named() -> None:
    folder = saved("weights")
    text = SUITE.replace("llama.json", "weights")
    shutil.copy(folder / "model.safetensors", "whole")
    (folder / "model.safetensors").write_bytes(Path("whole").read_bytes()[:300])
    with pytest.raises(UserError, match="truncated or damaged"):
        model_of(runs(text)["Llama"].model, TRANSFORMERS, {})
    shutil.copy("whole", folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lack model\.layers\.2"):
        model_of(runs(text)["Llama"].model, TRANSFORMERS, {})
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"hold model\.layers\.1.* config\.json lacks"):
        model_of(runs(text)["Llama"].model, TRANSFORMERS, {})


def test_a_missing_transformers_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers; .* pip install '\.\[hf\]'"):
        runs()


def test_code_of_a_folder_is_run_where_it_is_asked_for_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    config = {**LLAMA, "model_type": "mine", "auto_map": {}}
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    write("mine/config.json", config)
    Path("mine/mine.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Config(LlamaConfig):\n    model_type = 'mine'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    with pytest.raises(UserError, match="trust_remote_code = true"):
        runs(SUITE.replace("llama.json", "mine"))
    assert not Path("ran").exists()
    text = SUITE.replace('"llama.json"', '"mine", trust_remote_code = true')
    run = runs(text)["Llama"]
    assert Path("ran").exists()
    assert isinstance(run.model, HubConfig)
    model = model_of(run.model, TRANSFORMERS, {}, seed=1)
    assert isinstance(model, HubModel)
    assert (type(model.inner).__name__, model.embedding.num_embeddings) == ("Model", 512)
    assert model.flops_source == "counted"
    with (Path("mine") / "mine.py").open("a") as code:
        code.write("# changed\n")
    assert runs(text)["Llama"].key != run.key
    with pytest.raises(UserError, match="is no folder with Python files"):
        parse(SUITE.replace('"llama.json"', '"llama.json", trust_remote_code = true'))
