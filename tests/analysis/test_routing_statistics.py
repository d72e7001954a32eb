"""Planted decisions, whose saturation, specialisation, agreement and predictors are known."""

import numpy as np
import pytest

from modbench.analysis.routing import (
    Predictors,
    agreement,
    auc,
    chosen_like,
    load_measures,
    saturation,
    specialisation,
)

WINDOWS, TOKENS = 12, 256
RANDOM = np.random.default_rng(5)
IDS_WT = RANDOM.integers(0, 60, (WINDOWS, TOKENS))
ALL_N = np.ones(IDS_WT.size, dtype=bool)
DENSE_WT = RANDOM.exponential(size=IDS_WT.shape)
CHANGES_LN = RANDOM.exponential(size=(2, IDS_WT.size))


def highest(values_WT: np.ndarray, share: float = 0.125) -> np.ndarray:
    """The highest of each window."""
    cut_W1 = np.quantile(values_WT, 1 - share, axis=1, keepdims=True)
    return (values_WT > cut_W1).reshape(-1, 1)


def areas(chosen_N1: np.ndarray, layer: int = 1) -> dict[str, float]:
    predictors = Predictors(IDS_WT, capacity=0.125, dense_WT=DENSE_WT, changes_LN=CHANGES_LN)
    return predictors.of(layer, chosen_N1, ALL_N)[1]


PLACES_N = np.tile(np.arange(TOKENS), WINDOWS)
BEFORE_WT = np.hstack((np.full((WINDOWS, 1), -1), IDS_WT[:, :-1]))
PLANTED = {
    "first": (PLACES_N < 32, {"position"}),
    "middle": ((PLACES_N >= 100) & (PLACES_N < 140), {"position"}),
    "modulo": (PLACES_N % 7 == 3, {"position"}),
    "id": (np.isin(IDS_WT.ravel(), [3, 7, 8, 20, 41, 55]), {"id", "ids"}),
    "one before": (np.isin(BEFORE_WT.ravel(), [3, 7, 8, 20, 41, 55]), {"ids"}),
    "dense loss": (highest(DENSE_WT)[:, 0], {"dense_loss"}),
    "middling dense loss": (np.abs(DENSE_WT - 0.7).ravel() < 0.1, {"dense_loss"}),
    "dense change": (highest(CHANGES_LN[1].reshape(IDS_WT.shape))[:, 0], {"dense_change"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_rule_is_found_and_the_others_are_at_chance(name: str) -> None:
    member_N, rules = PLANTED[name]
    found = areas(member_N[:, None])
    assert found.keys() == {"position", "id", "ids", "dense_loss", "dense_change"}
    for rule, area in found.items():
        if rule not in rules:
            assert abs(area - 0.5) < 0.08, rule
        elif name == "middling dense loss":
            assert area > 0.9  # a model of the mean alone would be at chance
        else:
            assert area > 0.99, rule


def test_positions_drawn_once_are_no_rule() -> None:
    found = [areas(np.tile(RANDOM.random(TOKENS) < 0.125, WINDOWS)[:, None]) for _ in range(8)]
    assert max(abs(of["position"] - 0.5) for of in found) < 0.15
    assert abs(np.mean([of["position"] for of in found]) - 0.5) < 0.05


def test_a_stride_of_any_capacity_is_a_rule_of_the_position() -> None:
    strided = [int(number / 0.3) for number in range(100)]
    predictors = Predictors(IDS_WT, capacity=0.3)
    scores, found = predictors.of(0, np.isin(PLACES_N, strided)[:, None], ALL_N)
    assert found["position"] > 0.99
    assert found.keys() == scores.keys() == {"position", "id", "ids"}  # there is no dense model


def test_of_experts_the_membership_is_predicted_among_the_tokens_that_reach_them() -> None:
    chosen_NE = np.eye(4, dtype=bool)[IDS_WT.ravel() % 4]
    reached_N = RANDOM.random(IDS_WT.size) < 0.5
    chosen_NE[~reached_N] = True  # not looked at
    assert Predictors(IDS_WT).of(0, chosen_NE, reached_N)[1]["id"] > 0.99


def test_no_area_where_nothing_can_be_told() -> None:
    assert areas(np.zeros((IDS_WT.size, 1), dtype=bool)) == {}
    assert Predictors(IDS_WT).of(0, np.ones((IDS_WT.size, 2), dtype=bool), ~ALL_N)[1] == {}


def test_area_under_the_curve_counts_ties_half() -> None:
    member_N = np.array([True, False, True, False])
    assert auc(np.array([3.0, 1.0, 2.0, 2.0]), member_N) == 0.875
    assert auc(np.zeros(4), member_N) == 0.5
    assert auc(np.zeros(4), ~np.zeros(4, dtype=bool)) is None


def test_saturation_is_the_share_of_final_decisions_taken() -> None:
    final = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool)
    early = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], dtype=bool)
    assert saturation(early, final) == 0.5
    assert saturation(early, np.zeros_like(final)) is None


def test_agreement_matches_experts() -> None:
    chosen_NE = np.eye(5, dtype=bool)[RANDOM.integers(0, 5, 400)]
    assert agreement(chosen_NE, chosen_NE[:, [3, 1, 4, 0, 2]]) == 1
    other_NE = np.eye(5, dtype=bool)[RANDOM.integers(0, 5, 400)]
    assert 0.15 < (agreement(chosen_NE, other_NE) or 0) < 0.35
    assert agreement(chosen_NE, np.zeros_like(chosen_NE)) is None


@pytest.mark.parametrize("each", [1, 2])
def test_experts_of_sources_with_vocabularies_of_their_own_are_specialised_as_planted(each: int) -> None:
    source_N = np.arange(3000) // 500  # six sources
    ids_N = 40 * source_N + RANDOM.integers(0, 40, 3000)
    chosen_NE = np.eye(6, dtype=bool)[source_N]
    if each == 2:  # a second expert of each source
        chosen_NE |= np.eye(6, dtype=bool)[(source_N + 1) % 6]
    assert specialisation(chosen_NE, source_N) == pytest.approx(1)
    assert specialisation(chosen_NE, ids_N) == pytest.approx(1)
    shuffled_NE = RANDOM.permutation(chosen_NE)
    assert abs(specialisation(shuffled_NE, ids_N) or 0) < 0.02
    mixed_NE = np.where((np.arange(3000) % 2 == 0)[:, None], chosen_NE, shuffled_NE)
    assert 0.05 < (specialisation(mixed_NE, source_N) or 0) < 0.5


def test_specialisation_of_depth_routing_and_of_no_decision() -> None:
    member_N1 = (IDS_WT.ravel() < 20)[:, None]
    assert specialisation(member_N1, IDS_WT.ravel()) == pytest.approx(1)
    assert abs(specialisation(member_N1, RANDOM.integers(0, 9, IDS_WT.size)) or 0) < 0.02
    assert specialisation(np.ones((9, 1), dtype=bool), np.arange(9)) is None


def test_load_of_experts() -> None:
    measures = load_measures(np.array([2.0, 2.0, 0.0, 0.0]))
    assert measures == {"load_entropy": 0.5, "load_peak": 2, "unused_experts": 2}
    assert load_measures(np.zeros(4)) == load_measures(np.ones(1)) == {}


def test_a_rule_takes_as_many_as_the_model() -> None:
    own_TE = np.array([[1, 1], [0, 1], [1, 0]], dtype=bool)
    score_TE = np.array([[0.1, 0.3], [0.9, 0.2], [0.5, 0.1]])
    assert chosen_like(score_TE, own_TE, 0).tolist() == [[False, True], [True, True], [True, False]]
    assert chosen_like(score_TE, own_TE, 1).tolist() == [[True, True], [True, False], [True, False]]
