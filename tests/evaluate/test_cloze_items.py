"""The cloze items: matched, balanced, undoubled, and the same everywhere."""

import random
from collections import Counter

import pytest
from item_checks import fingerprint
from made_up import made_up_text

from modbench.data.config import DataConfig
from modbench.data.token_data import prepare
from modbench.evaluate.tasks import cloze
from modbench.evaluate.tasks.build import items_of_task
from modbench.evaluate.tasks.cloze import build_items
from modbench.evaluate.tasks.heldout import HeldOut
from modbench.evaluate.tasks.words import count_words


@pytest.fixture(scope="module")
def words():
    return count_words([made_up_text(1500)])


@pytest.fixture(scope="module")
def built(words):
    return build_items(HeldOut((made_up_text(300),), "-", words), count=100)


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


def test_no_sentence_is_asked_twice_and_no_answer_often(words):
    text = made_up_text(300, 1)
    built = build_items(HeldOut((text, text), "--", words))
    ends = {item["context"][-40:] + item["choices"][item["answer"]] for item in built}
    assert len(ends) == len(built)
    assert max(Counter(item["choices"][item["answer"]] for item in built).values()) <= 4


def test_items_name_the_source_of_their_document(words):
    heldout = [made_up_text(300, 1), made_up_text(300, 2)]
    built = build_items(HeldOut(tuple(heldout), "ab", words))
    assert {item["source"] for item in built} == {"a", "b"}
    assert all(item["context"] in heldout["ab".index(item["source"])] for item in built)


def test_a_word_that_starts_another_is_never_among_its_choices():
    starts = [f"{a}{b}gh{end}" for a in "xyz" for b in "ijkl" for end in ("", "m")]
    rng = random.Random(0)
    text = "\n".join(f"Now {' '.join(rng.sample(starts, 20))} and {word}." for word in starts * 25)
    built = build_items(HeldOut((text,), "-", count_words([text])))
    assert len(built) > 50
    for item in built:
        for one in item["choices"]:
            assert not any(other != one and other.startswith(one) for other in item["choices"])


def test_the_tokenizer_has_no_say(made_up):
    bpe = DataConfig(source="text", path=made_up.path, vocabulary=300, heldout=0.3)
    prepare(bpe, say=lambda _: None)
    assert fingerprint(items_of_task("modbench_cloze", bpe)) == fingerprint(
        items_of_task("modbench_cloze", made_up)
    )
