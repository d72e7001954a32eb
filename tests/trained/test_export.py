"""Folders that transformers and `modbench.load` read, and models that transformers doesn't have."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_records import replace
from torch import Tensor
from trained_runs import add_records, record_of, save_trained

import modbench
from modbench.cli.main import main
from modbench.data import token_data
from modbench.errors import UserError
from modbench.model.context import Context
from modbench.model.generate import generate
from modbench.records.line import as_json
from modbench.train.checkpoint import save_weights
from modbench.trained import hugging_face
from modbench.trained.export import export
from modbench.trained.load import Loaded, leak_of, load_trained

#: "he", then "the".
MERGES = [(104, 101), (116, 256)]
SHAPE = {
    "vocabulary": 259,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "mlp_width": 48,
    "tied_head": False,
    "rope_base": 5e4,
    "norm_epsilon": 1e-4,
}
TEXTS = [
    "the he the, and  more\n\n\tspaces ",
    "naïve café — 日本語 🤖 \u200b\x00",
    "<|endoftext|> in a text is text <|endoftext|>",
    "don't 12,345.6 they'll",
    "",
]


def trained(
    results: Path, router: str, options: dict[str, Any], shape: dict[str, Any] | None = None
) -> Loaded:
    """A run whose weights are far from the initial ones, norms included."""
    shape = SHAPE | (shape or {})
    record = record_of("one", router, 0, options=options, model=shape, sequence=96)
    add_records(results, record)
    folder = save_trained(results, "tiny/one", MERGES)
    model = load_trained(folder).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_weights(folder / "model.safetensors", model, key=record.key)
    return load_trained(folder)


def ours(loaded: Loaded, tokens_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return loaded.model(tokens_BT, Context(selection="causal"))


def theirs(folder: Path, tokens_BT: Tensor) -> Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    with torch.no_grad():
        return model(tokens_BT).logits


#: Router, options, changes of the shape, and their model_type.
SAME = {
    "dense": ("vanilla", {}, {}, "llama"),
    "tied": ("vanilla", {}, {"tied_head": True}, "llama"),
    "one-head-each": ("vanilla", {}, {"kv_heads": 4}, "llama"),
    "qk-norm": ("vanilla", {}, {"qk_norm": True}, "qwen3"),
    "mod-qk-norm": ("mod", {"capacity": 0.5}, {"qk_norm": True, "kv_heads": 4}, "modbench_qwen3"),
    "experts": ("token_choice", {"experts": 4}, {}, "mixtral"),
    "three-of-five": ("token_choice", {"experts": 5, "top_k": 3}, {"tied_head": True}, "mixtral"),
    "width-9": ("token_choice", {"expert_width": 9}, {}, "mixtral"),
    "capacity": ("token_choice", {"capacity_factor": 1.0}, {}, "mixtral"),
    "mod": ("mod", {"capacity": 0.5}, {}, "modbench_llama"),
    "mod-average": ("mod", {"causal": "ema_threshold", "capacity": 0.5}, {}, "modbench_llama"),
    "mod-gaussian": ("mod", {"scores": "gaussian", "capacity": 0.5}, {}, "modbench_llama"),
    "mod-full": ("mod", {"residual": "full", "capacity": 0.5}, {}, "modbench_llama"),
    "threshold": ("threshold_skip", {}, {"tied_head": True}, "modbench_llama"),
    "staged": ("mode_staged", {"experts": 4, "capacity": 0.5}, {}, "modbench_llama"),
    "staged-experts-choose": (
        "mode_staged",
        {"experts": 4, "capacity": 0.5, "experts_by": "expert_choice"},
        {},
        "modbench_llama",
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_transformers_loads_a_model_of_the_same_logits(case: str, tmp_path: Path) -> None:
    router, options, shape, kind = SAME[case]
    loaded = trained(tmp_path / "my-results", router, options, shape)
    export(loaded, "hf", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kind
    tokens_BT = torch.randint(259, (3, 96))
    logits_BTV = ours(loaded, tokens_BT)
    torch.testing.assert_close(theirs(tmp_path / "out", tokens_BT), logits_BTV, rtol=1e-5, atol=1e-5)
    assert logits_BTV.std() > 0.1


@pytest.mark.parametrize("merges", [MERGES, []], ids=["bpe", "bytes"])
def test_transformers_loads_a_tokenizer_of_the_same_ids(
    merges: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    shape = {"vocabulary": 257 + len(merges)}
    monkeypatch.setattr(sys.modules[__name__], "MERGES", merges)
    loaded = trained(tmp_path / "my-results", "vanilla", {}, shape)
    export(loaded, "hf", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert tokenizer(text, verbose=False)["input_ids"] == loaded.tokenizer.encode(text)
        assert tokenizer.decode(loaded.tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == loaded.tokenizer.end_of_text == len(tokenizer) - 1
    assert set(tokenizer("the")) == {"input_ids", "attention_mask"}  # what generate takes


def test_transformers_generates_what_modbench_generates(tmp_path: Path) -> None:
    import transformers

    loaded = trained(tmp_path / "my-results", "token_choice", {"experts": 4})
    export(loaded, "hf", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer("the he", return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()
    ids = loaded.tokenizer.encode("the he")
    assert found == ids + generate(loaded.model, [ids], new=12)[0]


@pytest.mark.parametrize(
    ("router", "options", "shape", "words"),
    [
        ("token_choice", {}, {"qk_norm": True}, "tiny/one normalises queries and keys"),
        ("relu_routing", {}, {}, "router 'relu_routing' of tiny/one has no counterpart"),
        ("vanilla", {}, {"mlp": "gelu"}, "mlp of tiny/one is 'gelu', and Llama's is swiglu"),
        ("token_choice", {"renormalise": False}, {}, "option renormalise of tiny/one is False"),
    ],
)
def test_a_model_that_transformers_lacks_is_refused(
    router: str, options: dict[str, Any], shape: dict[str, Any], words: str, tmp_path: Path
) -> None:
    loaded = trained(tmp_path / "my-results", router, options, shape)
    with pytest.raises(UserError, match=words) as refused:
        export(loaded, "hf", tmp_path / "out")
    assert "modbench.load(" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["my-results"]


def test_a_model_of_other_logits_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, weights_of = trained(tmp_path / "my-results", "vanilla", {}), hugging_face._weights

    def wrong(model: Any) -> dict[str, Tensor]:
        weights = weights_of(model)
        weights["model.norm.weight"] += 1e-3
        return weights

    monkeypatch.setattr(hugging_face, "_weights", wrong)
    with pytest.raises(UserError, match=r"computes other logits \(difference .*nothing was written"):
        export(loaded, "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["my-results"]


def test_a_copy_for_modbench_needs_neither_results_nor_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = trained(tmp_path / "my-results", "mod", {"causal": "ema_threshold"})
    (loaded.folder / "modbench.json").unlink()  # as in older results: the corpus is read
    prepared = type("Text", (), {"tokenizer": loaded.tokenizer})
    monkeypatch.setattr(token_data, "load", lambda config: prepared)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "tiny/one", "--to", "modbench", "--out", "a/copy"]) == 0
    said = capsys.readouterr()
    assert said.out == "a/copy\n"
    assert said.err == "modbench: load it with modbench.load('a/copy')\n"
    monkeypatch.undo()
    Path(tmp_path / "my-results").rename(tmp_path / "gone")
    model, tokenizer = modbench.load(tmp_path / "a" / "copy")
    tokens_BT = torch.arange(20).view(2, 10)
    assert torch.equal(model(tokens_BT, Context(selection="causal")), ours(loaded, tokens_BT))
    assert tokenizer.merges == loaded.tokenizer.merges


def test_a_copy_for_modbench_keeps_its_audit_also_when_it_is_copied_again(tmp_path: Path) -> None:
    loaded = trained(tmp_path / "my-results", "vanilla", {})
    assert leak_of(loaded) == "not audited"
    probes = [
        {"probe": number, "name": name, "verdict": verdict, "figure": "0", "ranks": True}
        for number, name, verdict in ((1, "causal", "passed"), (2, "batch-invariant", "failed"))
    ]
    assert loaded.result is not None
    record = loaded.result.record
    record = replace(record, ends=[as_json(record.ends[0]) | {"audit": probes}])
    audited = replace(loaded, result=replace(loaded.result, record=record))
    export(audited, "modbench", tmp_path / "one")
    export(load_trained(tmp_path / "one"), "modbench", tmp_path / "two")
    assert leak_of(load_trained(tmp_path / "two")) == "failed probe 2 batch-invariant: 0"
    text = (tmp_path / "two" / "modbench.json").read_text()
    (tmp_path / "two" / "modbench.json").write_text(text.replace('"failed"', '"passed"'))
    with pytest.raises(UserError, match="differs from its sha256"):
        load_trained(tmp_path / "two")


@pytest.mark.parametrize("to", ["hf", "modbench"])
def test_a_folder_that_holds_something_is_not_written_into(to: Any, tmp_path: Path) -> None:
    loaded = trained(tmp_path / "my-results", "vanilla", {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in ("full", "file"):
        with pytest.raises(UserError, match=f"{out} exists and isn't an empty folder; give --out a new"):
            export(loaded, to, tmp_path / out)
    with pytest.raises(UserError, match=r"can't be made \(Not a directory\); give --out another"):
        export(loaded, to, tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    export(loaded, to, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()
