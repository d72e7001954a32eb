"""Which cells an isoFLOP suite has, at each stage of its learning rates."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from modbench.analysis.learning_rate import refined_exponent
from modbench.model.config import ModelConfig
from modbench.sweep.isoflop import LAW_MARGIN, Point, design, rate_seed
from modbench.sweep.tables import DepthConfig

CONFIG = DepthConfig(refine=False, rate_seed=0)
REFINED = DepthConfig(rate_seed=9)
SEEDS = (0, 1, 2)


def shapes(*widths: int) -> list[ModelConfig]:
    return [replace(ModelConfig(), width=width) for width in widths]


GRIDS = {
    100: shapes(16, 24, 32, 40, 48),
    300: shapes(24, 32, 48, 64, 96),
    900: shapes(32, 48, 64, 96, 128),
}


RATES = {(48, 0.0025): 3.0, (48, 0.005): 2.9, (48, 0.01): 3.0}
Known = Mapping[tuple[int, float], float | None]  # losses at the middle budget by width and rate


def points(config: DepthConfig, known: Known) -> list[Point]:
    """The runs that are wanted once those of ``known`` are done."""
    stages = design(config, GRIDS, SEEDS)
    wants = next(stages)
    while True:
        found = [*wants.rates, *wants.others]
        by_point = {(p.shape.width, p.learning_rate): p for p in found if p.budget == 300}
        try:
            wants = stages.send({by_point[key]: known[key] for key in by_point.keys() & known.keys()})
        except StopIteration:
            return found


def test_learning_rates_at_the_middle_come_first() -> None:
    found = points(CONFIG, {})
    assert {(point.shape.width, point.budget, point.seed) for point in found} == {(48, 300, 0)}
    assert [point.learning_rate for point in found] == [0.0025, 0.005, 0.01]


def test_edge_extends_the_grid_before_anything_else_is_run() -> None:
    found = points(CONFIG, {(48, 0.0025): 3.0, (48, 0.005): 2.9, (48, 0.01): 2.8})
    assert [point.learning_rate for point in found] == [0.0025, 0.005, 0.01, 0.02]
    assert {point.budget for point in found} == {300}


def test_chosen_rate_gives_all_sizes_and_the_check_of_its_law() -> None:
    found = points(CONFIG, RATES)
    assert len(found) == len(set(found)) == 2 + 5 * 3 + 5 + 5 + 2
    of_largest = [point for point in found if (point.shape.width, point.budget) == (96, 300)]
    assert sorted((point.learning_rate, point.seed) for point in of_largest) == [
        (0.00177, 0),
        (0.00354, 0),
        (0.00354, 1),
        (0.00354, 2),
        (0.00708, 0),
    ]
    small = next(point for point in found if (point.shape.width, point.budget) == (16, 100))
    assert small == Point(GRIDS[100][0], 100, 0.00866, 0)


def checks_of(smallest: tuple[float, ...], largest: tuple[float, ...]) -> dict[tuple[int, float], float]:
    """Losses of the check at widths 24 and 96, by the law's rate at 48, .005: below, law, above."""
    rates = {24: (0.00353, 0.00707, 0.0141), 96: (0.00177, 0.00354, 0.00708)}
    losses = {24: smallest, 96: largest}
    return {(w, r): loss for w in rates for r, loss in zip(rates[w], losses[w], strict=True)}


def test_the_law_is_checked_at_both_ends_before_any_curve_runs() -> None:
    found = points(REFINED, RATES)
    widths = {(point.shape.width, point.budget, point.seed) for point in found}
    assert widths == {(24, 300, 9), (48, 300, 9), (96, 300, 9)}
    assert len(found) == 9
    assert set(checks_of((0, 0, 0), (0, 0, 0))) == {
        (point.shape.width, point.learning_rate) for point in found if point.shape.width != 48
    }


def test_a_law_that_holds_keeps_its_exponent_and_is_checked_at_the_largest_budget() -> None:
    held = checks_of((3.0, 2.9, 3.0), (3.0, 2.995, 2.99))  # loses less than the margin of 0.01
    found = points(REFINED, RATES | held)
    assert len(found) == 9 + 5 * 3 + 5 + 5 + 3
    curve = {point.shape.width: point.learning_rate for point in found if point.budget == 900}
    assert curve[128] == 0.00306  # .005 x (128 / 48) ** -.5
    again = sorted((p.learning_rate, p.seed) for p in found if (p.shape.width, p.budget) == (64, 900))
    assert again == [(0.00216, 9), (0.00433, 0), (0.00433, 9), (0.00866, 9)]


def test_a_law_that_fails_gets_another_exponent() -> None:
    failed = checks_of((3.0, 2.9, 2.8), (2.8, 2.9, 3.0))  # best: twice and half the law's rate
    found = points(REFINED, RATES | failed)
    of_curve = {p.shape.width: p.learning_rate for p in found if (p.budget, p.seed) == (300, 0)}
    # log(2 x 2 ** .5) / log(1 / 2) = -1.5, but for the rounding of the rates
    assert of_curve == {24: 0.0141, 32: 0.00917, 48: 0.005, 64: 0.00325, 96: 0.00177}


def test_one_missing_check_keeps_the_curves_waiting() -> None:
    known = checks_of((3.0, 2.9, 2.8), (2.8, 2.9, 3.0))
    known.pop((96, 0.00708))
    assert {point.budget for point in points(REFINED, RATES | known)} == {300}


def test_all_rates_diverged_leaves_the_scheme_without_curves() -> None:
    found = points(CONFIG, dict.fromkeys(RATES))
    assert {point.budget for point in found} == {300}
    assert len(found) == 3


def test_rates_have_a_seed_that_no_curve_has_by_default() -> None:
    assert rate_seed(DepthConfig(), [0, 1, 2]) == 100
    assert rate_seed(DepthConfig(), [0, 100, 101]) == 102
    assert rate_seed(DepthConfig(rate_seed=0), [0, 1]) == 0


@pytest.mark.parametrize(("lost", "refined"), [(0.02, False), (0.04, True)])
def test_the_law_is_refined_beyond_its_own_margin_only(lost: float, refined: bool) -> None:
    """0.02 nats is more than the margin of comparisons, and within the noise of one run."""
    config = DepthConfig(exponent=-0.5)
    tried: dict[int, dict[float, float | None]] = {
        32: {0.00354: 4.0 + lost, 0.00707: 4.0 + lost, 0.0141: 4.0},
        128: {0.00177: 4.0, 0.00354: 4.0 + lost, 0.00707: 4.0 + lost},
    }
    exponent = refined_exponent(config.exponent, 0.005, 64, tried, LAW_MARGIN)
    assert (exponent != config.exponent) == refined
