"""The probes: what is asked was seen at the stated distance, and only a model that uses it is right."""

import re
from functools import partial

import pytest
from item_checks import accuracy, made_up_heldout

from modbench.evaluate.tasks import DISTANCES
from modbench.evaluate.tasks.mixture import build_items as mixture
from modbench.evaluate.tasks.probes import build_items
from modbench.evaluate.tasks.words import bare

copy, recall = partial(build_items, "copy"), partial(build_items, "recall")


@pytest.fixture(scope="module")
def text():
    return made_up_heldout()


def words_of(context):
    return [bare(word).lower() for word in context.split()]


def induction(context, choice):
    """Number of words before the asked place that are repeated before an earlier ``choice``."""
    words = words_of(context)
    best = 0
    for place, word in enumerate(words):
        if word == choice:
            length = 0
            while length < place and words[place - 1 - length] == words[-1 - length]:
                length += 1
            best = max(best, length)
    return best


def last_seen(context, choice):
    words = words_of(context)
    return max((place for place, word in enumerate(words) if word == choice), default=-1)


@pytest.mark.parametrize("build", [copy, recall])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_answer_was_seen_once_at_the_distance(build, distance, text):
    for item in build(text, distance=distance):
        words = words_of(item["context"])
        seen = [place for place, word in enumerate(words) if word == item["choices"][item["answer"]]]
        assert [len(words) - place for place in seen] == [distance]


@pytest.mark.parametrize("distance", DISTANCES)
def test_only_the_right_choice_of_a_copy_item_was_seen(distance, text):
    for item in copy(text, distance=distance):
        words = words_of(item["context"])
        seen = [choice in words for choice in item["choices"]]
        assert seen == [place == item["answer"] for place in range(4)]


@pytest.mark.parametrize("distance", DISTANCES)
def test_recall_needs_the_key(distance, text):
    items = recall(text, distance=distance)
    for item in items:
        words = words_of(item["context"])
        assert [words.count(choice) for choice in item["choices"]] == [1] * 4
        pairs = dict(re.findall(r"([a-z]+): ([a-z]+)\.", item["context"].partition("\n")[0]))
        assert len(pairs) == 4
        assert (
            pairs[item["context"].splitlines()[-1].removesuffix(":")] == item["choices"][item["answer"]]
        )
    assert accuracy(items, last_seen) == 0.25
    assert accuracy(items, lambda *both: -last_seen(*both)) == 0.25


@pytest.mark.parametrize("build", [copy, recall])
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_rule_that_continues_what_was_repeated_solves_copy_and_recall(build, distance, text):
    assert accuracy(build(text, distance=distance), induction) == 1.0


@pytest.mark.parametrize("build", [copy, recall])
def test_words_and_filler_are_the_same_at_every_distance(build, text):
    short, long = (build(text, distance=distance) for distance in (16, 64))
    for one, other in zip(short, long, strict=True):
        assert one["choices"] == other["choices"]
        lines, longer = one["context"].splitlines(), other["context"].splitlines()
        assert (lines[0], lines[2]) == (longer[0], longer[2])
        assert longer[1].startswith(lines[1])


def test_easy_words_of_a_mixture_are_repeated_and_hard_ones_are_not(text):
    easy, hard = mixture(text, hard=False), mixture(text, hard=True)
    for item in easy:
        words = words_of(item["context"])
        counts = [words.count(choice) for choice in item["choices"]]
        assert counts[item["answer"]] == 2
        assert sorted(counts) == [0, 0, 0, 2]
    assert accuracy(easy, induction) == 1.0
    for item in hard:
        sentences = [one for one in re.split(r"(?<=\.) ", item["context"]) if one]
        assert len(sentences) == 6
        assert sentences[0] == sentences[2] == sentences[4]
        assert not set(item["choices"]) & set(words_of(sentences[0]))
    assert accuracy(hard, induction) < 0.5
