"""`modbench flops`."""

import json
from pathlib import Path
from typing import Any

import pytest

from modbench.cli.main import main
from modbench.model.block import Block


def said(capsys: pytest.CaptureFixture[str], words: str) -> str:
    assert main(["flops", *words.split()]) == 0
    return capsys.readouterr().out


def test_options_are_read_as_toml(capsys: pytest.CaptureFixture[str]) -> None:
    eighth = said(capsys, "--router mod --option capacity=0.125")
    assert eighth == said(capsys, "--router mod")
    assert eighth != said(capsys, "--router mod --option capacity=0.5")


def test_the_optimizers_matmuls_are_executed_alone_and_fewer_per_token_in_a_larger_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stated(more: str) -> dict[str, Any]:
        words = f"--router mod --phase train --optimizer muon --format json {more}"
        return dict(json.loads(said(capsys, words).splitlines()[-1])["models"][0])

    plain = json.loads(said(capsys, "--router mod --phase train --format json").splitlines()[-1])
    model, executed = stated(""), stated("--convention executed")
    assert model["by_component"]["optimizer"] == 0
    assert model["flops"] == plain["models"][0]["flops"]
    assert executed["by_component"]["optimizer"] == model["optimizer_flops"] > 0
    assert executed["flops"] == model["step_flops_executed"] == sum(executed["by_component"].values())
    per_token = model["optimizer_flops_per_token"]
    assert stated("--batch 4")["optimizer_flops_per_token"] == per_token / 4
    table = said(capsys, "--router mod --phase train --optimizer muon")
    assert f"{per_token:,.1f} per token" in table


@pytest.mark.parametrize(
    ("words", "noun"),
    [
        ("--router mod", "--phase train"),
        ("--hf config.json --phase train", "--router"),
        ("--router mod --phase train --profile", "--profile"),
    ],
)
def test_an_optimizer_without_a_step_is_refused(
    words: str, noun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flops", *words.split(), "--optimizer", "muon"]) == 2
    assert noun in capsys.readouterr().err


@pytest.mark.parametrize("source", ["--router mod vanilla", "--hf config.json"])
def test_json_is_one_document_on_the_last_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text('{"model_type": "mixtral", "num_hidden_layers": 2}')
    words = f"{source} --phase train --profile --compare-conventions --format json"
    (*_, last) = said(capsys, words).splitlines()
    for model in json.loads(last)["models"]:
        assert model["counters"]["modbench"]["flops"] == model["flops"] == model["conventions"]["model"]
        assert model["flops"] == sum(model["by_component"].values())
        assert model["flops_per_token"] * model["sequences"] * model["tokens"] == model["flops"]
        assert len(model["conventions"]) == 10
        assert 0 < model["active_parameters"] <= model["parameters"]
        assert model["ratio_to_dense"] == model["flops"] / model["dense_flops"]


@pytest.mark.parametrize(
    ("config", "words", "tokens"),
    [
        ({"model_type": "llama", "max_position_embeddings": 4096}, "", "1 x 4096 tokens"),
        ({"model_type": "gpt2", "n_positions": 512}, "", "1 x 512 tokens"),
        ({"model_type": "llama", "max_position_embeddings": 4096}, "--past 96", "1 x 4000 tokens"),
    ],
)
def test_a_hugging_face_model_is_stated_at_its_own_length(
    config: dict[str, object],
    words: str,
    tokens: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    layers = {"n_layer": 2} if config["model_type"] == "gpt2" else {"num_hidden_layers": 2}
    Path("config.json").write_text(json.dumps({**config, **layers}))
    assert f"forward, {tokens}" in said(capsys, f"--hf config.json {words}")


def test_a_counter_that_differs_is_printed_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Block.ledger
    monkeypatch.setattr(Block, "ledger", lambda self, load: right(self, load) * 2)
    assert main(["flops", "--router", "vanilla", "--profile"]) == 1
    assert "vanilla: the closed form says" in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["forward", "prefill", "decode"])
def test_a_chunk_after_cached_tokens_equals_its_closed_form(
    phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--router vanilla mod mode_staged --profile --past 7 --sequence 5 --phase {phase}"
    differences = [line.split() for line in said(capsys, words).splitlines() if "difference" in line]
    assert [ours for _, ours, *_ in differences] == ["0"] * 3


def test_a_repeated_flag_adds_to_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    repeated = "--option capacity=0.5 --option every=1 --router mod"
    assert said(capsys, repeated) == said(capsys, "--router mod --option capacity=0.5 every=1")


def test_ignored_keys_and_defaults_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_key_value_head": 8, "rope_theta": 1e5}
    Path("config.json").write_text(json.dumps(config))
    *_, ignored, taken = said(capsys, "--hf config.json --profile --sequence 9").splitlines()
    assert ignored.split()[2:] == ["num_key_value_head"]
    assert "hidden_size 4096" in taken
    assert "num_key_value_heads null" in taken
    assert "num_hidden_layers" not in taken
    (*_, last) = said(capsys, "--hf config.json --format json").splitlines()
    (model,) = json.loads(last)["models"]
    assert model["ignored_keys"] == ["num_key_value_head"]
    assert model["defaults_taken"]["num_key_value_heads"] is None
    assert model["defaults_taken"]["hidden_size"] == 4096
    routed = said(capsys, "--router mod")
    assert "ignored keys" not in routed
    assert "defaults taken" not in routed


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": ["llama"]},
        {"model_type": "gemma3_text", "sliding_window": 512},
        {"model_type": "llama", "text_config": {"hidden_size": 64}},
        {"model_type": "phi3", "is_causal": False},
    ],
)
def test_a_config_without_a_closed_form_is_refused(
    config: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(config))
    assert main(["flops", "--hf", "config.json"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "config.json" in sentence
    assert "did you mean" not in sentence
