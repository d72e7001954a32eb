"""The embedded corpus: clean text, and nothing held out is in the training part."""

import re

import numpy as np
import pytest

from modbench.data import corpus, token_data
from modbench.data.config import DataConfig
from modbench.data.documents import Document


def word_ngrams(text: str, n: int) -> set[int]:
    """Hashes of the runs of ``n`` words in ``text``, case and punctuation aside."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {hash(tuple(words[at : at + n])) for at in range(len(words) - n + 1)}


@pytest.fixture(scope="module")
def real():
    return corpus.read_pypi_en()


@pytest.mark.full
def test_real_corpus_has_no_boilerplate_and_no_passage_on_both_sides(real):
    for piece in (*real[0], *real[1]):
        assert not re.search(
            r"Project Gutenberg|by William Shakespeare|:\w+:`|^\.\. \w+::|Psalm \d", piece.text, re.M
        ), piece.name
    sides = []
    for side in real:
        names = {piece.name.partition("#")[0] for piece in side}
        sides.append({re.sub(r"^bible/\w+/", "bible/", name) for name in names})
    assert not sides[0] & sides[1]


@pytest.mark.full
def test_no_held_out_document_is_told_in_the_training_part(real):
    """Runs of 13 words that a held-out document shares with the training text show near-duplicates."""
    train = set().union(*(word_ngrams(piece.text, 13) for piece in real[0]))
    documents: dict[str, set[int]] = {}
    for piece in real[1]:
        documents.setdefault(piece.name.partition("#")[0], set()).update(word_ngrams(piece.text, 13))
    shares = {name: len(grams & train) / max(1, len(grams)) for name, grams in documents.items()}
    worst = max(shares, key=shares.__getitem__)
    assert shares[worst] < 0.06, worst
    shared = sum(len(grams & train) for grams in documents.values())
    assert shared / sum(map(len, documents.values())) < 0.005


@pytest.mark.parametrize("tokenizer", [pytest.param("bpe", marks=pytest.mark.full), "bytes"])
def test_real_token_file_is_the_pinned_one(tokenizer, tmp_path):
    config = DataConfig(tokenizer=tokenizer)
    data = token_data.prepare(config, cache=tmp_path, say=lambda sentence: None)
    assert data.sha256 == token_data.PINNED["pypi-en-v1", tokenizer, config.vocabulary]


@pytest.mark.full
def test_tokens_decode_to_the_real_text(tmp_path, real):
    data = token_data.prepare(DataConfig(), cache=tmp_path, say=lambda sentence: None)
    ends = np.flatnonzero(data.heldout_N == data.tokenizer.end_of_text) + 1
    heldout = [data.tokenizer.decode(ids_N) for ids_N in np.split(data.heldout_N, ends)[:-1]]
    assert heldout == [piece.text for piece in real[1]]


def test_tokens_that_are_not_the_pinned_ones_are_refused_and_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus, "read_pypi_en", lambda: ([Document("a", "x")], [Document("b", "y")]))
    with pytest.raises(
        token_data.UserError, match=r"came out with sha256 .*, not the pinned .* tokenizers \d"
    ):
        token_data.prepare(DataConfig(tokenizer="bytes"), cache=tmp_path, say=lambda sentence: None)
    assert not list(tmp_path.glob("pypi*[!k]"))


def test_the_licences_of_the_texts_come_with_the_file():
    notes = corpus.PYPI_EN_FILE.with_name("pypi-en-v1.LICENSE.txt").read_text()
    for source in ("Shakespeare", "World English Bible", "American Standard Version", "Django"):
        assert source in notes
    assert "Redistributions of source code must retain the above copyright" in notes
