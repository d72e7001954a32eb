"""Statistics on items, on data whose truth is known."""

import math

import numpy as np
import pytest

from modbench.analysis.items import SharedChoices, centred_correct, score_item


def test_one_item_is_scored_by_its_log_probabilities() -> None:
    right = score_item([-3.0, -1.0, -2.5], 1, 2)
    assert right.correct == 1
    assert right.bits_per_byte == pytest.approx(1 / math.log(2) / 2)
    assert right.margin == pytest.approx(1.5)
    wrong = score_item([-3.0, -1.0, -2.5], 0, 1)
    assert (wrong.correct, wrong.margin) == (0, -2.0)


def test_the_first_of_equal_choices_counts_and_one_choice_has_no_margin() -> None:
    assert [score_item([-1.0] * 4, answer, 1).correct for answer in range(4)] == [1, 0, 0, 0]
    assert math.isnan(score_item([-1.0], 0, 1).margin)


def test_centring_removes_the_prior_of_a_choice_and_keeps_what_the_context_adds() -> None:
    prior = np.array([9.0, 0.0, -4.0, 1.0])
    items = [SharedChoices("k", tuple(prior + np.eye(4)[answer]), answer) for answer in range(4)]
    assert [score_item(item.choices_nats, item.answer, 1).correct for item in items] == [1, 0, 0, 0]
    assert centred_correct(items).tolist() == [1, 1, 1, 1]
    # The order and the number of times that a key occurs do not matter; an incomplete key does.
    other = [SharedChoices("x", (0.0, 1.0), answer) for answer in (0, 0, 1)]
    found = centred_correct([*items[::-1], *other, *items])
    assert np.isnan(found[4:7]).all()
    assert np.nanmean(found) == 1


def test_centred_accuracy_of_random_scores_is_chance() -> None:
    draw = np.random.default_rng(0)
    items = [
        SharedChoices(str(key), tuple(draw.standard_normal(4)), answer)
        for key in range(2500)
        for answer in range(4)
    ]
    assert centred_correct(items).mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 1e4))
