"""A tokenizer of one's own, from a tokenizer.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_suite import TEXT, modbench_says, suite_text, write_suite
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from modbench.data.token_data import prepare
from modbench.data.tokenizer import FileTokenizer
from modbench.errors import UserError
from modbench.records.store import read_suite
from modbench.sweep.suite import load_suite
from modbench.trained.load import load


def trained(vocabulary: int = 300, *, alphabet: bool = True, special: list[str] | None = None) -> Any:
    """A byte-level BPE, trained on the text of the small suite."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        special_tokens=special or [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
    )
    engine.train_from_iterator([TEXT], trainer)
    return engine


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text(trained(special=["<pad>", "</s>"]).to_str())
    write_suite(tmp_path, "own", "vanilla", data={"tokenizer": "own.json"})


def test_ids_are_those_of_the_library_and_text_comes_back() -> None:
    engine = trained(special=["<pad>", "</s>"])
    engine.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    engine.enable_truncation(4)
    tokenizer = FileTokenizer(engine.to_str(), "own")
    plain = trained(special=["<pad>", "</s>"])
    for text in ("one line and another, 7.", "\n\tnaïve 世界 \U0001f600", ""):
        assert tokenizer.encode(text) == plain.encode(text).ids
        assert tokenizer.stream([text]).tolist() == [*plain.encode(text).ids, 1]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.vocabulary, tokenizer.end_of_text, tokenizer.end_token) == (300, 1, "</s>")
    assert 1 not in tokenizer.encode("a </s> in a text is text")
    assert tokenizer.decode([1, *tokenizer.encode("a"), 0]) == "a"


def test_a_file_without_end_of_text_has_one_id_more() -> None:
    tokenizer = FileTokenizer(trained(280).to_str(), "own")
    assert (tokenizer.vocabulary, tokenizer.end_of_text) == (281, 280)


def test_the_vocabulary_of_a_suite_is_that_of_the_file() -> None:
    suite = load_suite("suite.toml")
    assert suite.data.vocabulary == suite.stated[""]["vocabulary"] == 300
    data = prepare(suite.data, say=lambda text: None)
    assert data.tokenizer.decode(data.heldout_N[:40].tolist()) in TEXT
    text_bytes = int(data.token_bytes_V[data.train_N].sum() + data.token_bytes_V[data.heldout_N].sum())
    assert text_bytes == len(TEXT.encode())


def test_a_changed_file_is_another_text() -> None:
    first = load_suite("suite.toml").data
    Path("own.json").write_text(trained(300, special=["</s>", "<pad>"]).to_str())
    second = load_suite("suite.toml").data
    assert first.tokenizer_sha256 != second.tokenizer_sha256
    assert first.settings() != second.settings()
    assert prepare(first.__class__(**vars(second)), say=str).sha256 is not None
    with pytest.raises(UserError, match=r"has sha256 \w+, not \w+ as stated; restore the file"):
        prepare(first, say=str)


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (
            {"data": {"vocabulary": 2048}},
            "[data]: data vocabulary is 2048, but tokenizer 'own.json' has 300",
        ),
        ({"data": {"tokenizer": "no.json"}}, "data tokenizer 'no.json' can't be read (No such file"),
    ],
)
def test_a_contradiction_is_one_sentence(tables: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    tables["data"] = {"tokenizer": "own.json"} | tables.get("data", {})
    Path("suite.toml").write_text(suite_text("own", "vanilla", **tables))
    code, out = modbench_says(tmp_path, "plan", "suite.toml")
    assert code == 2
    assert sentence in " ".join(out.split())
    assert len(out.splitlines()) == 1


def lower_case() -> str:
    engine = trained()
    engine.normalizer = normalizers.Lowercase()
    return str(engine.to_str())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model": ', "is no tokenizer of the library tokenizers"),
        (lower_case(), "does not give every text back"),
    ],
    ids=["cut off", "lower case"],
)
def test_a_file_that_can_not_be_used_is_refused(content: str, words: str) -> None:
    Path("own.json").write_text(content)
    with pytest.raises(UserError, match=f"data tokenizer 'own.json' {words}"):
        load_suite("suite.toml")


def test_a_trained_model_brings_its_tokenizer(tmp_path: Path) -> None:
    code, out = modbench_says(tmp_path, "run", "suite.toml")
    assert code == 0, out
    (record,) = read_suite(tmp_path / "my-results" / "own").runs
    assert record.run["data"]["tokenizer"] == "own.json"
    assert len(record.run["data"]["tokenizer_sha256"]) == 64
    Path("own.json").unlink()
    _, tokenizer = load("my-results/own/vanilla")
    engine = trained(special=["<pad>", "</s>"])
    assert tokenizer.encode("one line") == engine.encode("one line").ids
    pytest.importorskip("transformers")
    code, out = modbench_says(tmp_path, "export", "own/vanilla", "--to", "hf", "--out", "exported")
    assert code == 0, out
    assert json.loads(Path("exported/config.json").read_text())["eos_token_id"] == 1
