"""Learning rates: an interior best one, or an extended grid, or a named edge."""

from math import log

import pytest

from modbench.analysis.learning_rate import RateChoice, choose_rate, is_geometric, neighbours, rate_at

GRID = (0.0025, 0.005, 0.01)


def loss(rate: float, best: float) -> float:
    return 3 + log(rate / best) ** 2


def run_all(best: float, extensions: int = 2) -> tuple[RateChoice, list[float]]:
    """Run the wanted rates until none is left; return the choice and the rates that were run."""
    losses: dict[float, float | None] = {}
    while (choice := choose_rate(GRID, losses, extensions)).verdict == "open":
        losses |= {rate: loss(rate, best) for rate in choice.wanted}
    return choice, sorted(losses)


def test_grid_is_run_first() -> None:
    assert choose_rate(GRID, {}) == RateChoice("open", None, GRID)
    assert choose_rate(GRID, {0.005: 3.0}) == RateChoice("open", 0.005, (0.0025, 0.01))


@pytest.mark.parametrize(
    ("best", "found", "rates"),
    [
        (0.0052, 0.005, [0.0025, 0.005, 0.01]),
        (0.011, 0.01, [0.0025, 0.005, 0.01, 0.02]),
        (0.0024, 0.0025, [0.00125, 0.0025, 0.005, 0.01]),
        (0.021, 0.02, [0.0025, 0.005, 0.01, 0.02, 0.04]),
    ],
)
def test_grid_is_extended_until_the_best_rate_is_interior(
    best: float, found: float, rates: list[float]
) -> None:
    assert run_all(best) == (RateChoice("interior", found), rates)


def test_extension_stops_at_its_limit_and_names_the_edge() -> None:
    assert run_all(1.0) == (RateChoice("edge", 0.04), [0.0025, 0.005, 0.01, 0.02, 0.04])
    assert run_all(1.0, extensions=0) == (RateChoice("edge", 0.01), list(GRID))


def test_diverged_rates_are_worse_than_all_others() -> None:
    assert choose_rate(GRID, {0.0025: 3.0, 0.005: 2.9, 0.01: None}) == RateChoice("interior", 0.005)
    assert choose_rate(GRID, dict.fromkeys(GRID)) == RateChoice("edge", None)


def test_law_scales_with_the_width() -> None:
    assert rate_at(0.01, 64, 256, -0.5) == 0.005
    assert rate_at(0.01, 64, 64, -0.5) == 0.01
    assert neighbours(GRID, 0.01) == (0.005, 0.02)


def test_geometric_grids_are_told_from_others() -> None:
    assert is_geometric(GRID)
    assert is_geometric((0.001, 0.002, 0.005))
    assert not is_geometric((0.01, 0.005, 0.0025))
    assert not is_geometric((0.001, 0.002, 0.02))
