"""Which cells an isoFLOP suite has, at each stage of its learning rates."""

from dataclasses import replace

import pytest

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.sweep.isoflop import IsoFlopConfig, Point, middle_of, points, stated

CONFIG = IsoFlopConfig()
SEEDS = (0, 1, 2)


def shapes(*widths: int) -> list[ModelConfig]:
    return [replace(ModelConfig(), width=width) for width in widths]


GRIDS = {
    100: shapes(16, 24, 32, 40, 48),
    300: shapes(24, 32, 48, 64, 96),
    900: shapes(32, 48, 64, 96, 128),
}


def test_learning_rates_at_the_middle_come_first() -> None:
    found = points(CONFIG, GRIDS, SEEDS, {})
    assert {(point.shape.width, point.budget, point.seed) for point in found} == {(48, 300, 0)}
    assert [point.learning_rate for point in found] == [0.0025, 0.005, 0.01]


def test_edge_extends_the_grid_before_anything_else_is_run() -> None:
    found = points(CONFIG, GRIDS, SEEDS, {0.0025: 3.0, 0.005: 2.9, 0.01: 2.8})
    assert [point.learning_rate for point in found] == [0.0025, 0.005, 0.01, 0.02]
    assert {point.budget for point in found} == {300}


def test_chosen_rate_gives_all_sizes_and_the_check_of_its_law() -> None:
    found = points(CONFIG, GRIDS, SEEDS, {0.0025: 3.0, 0.005: 2.9, 0.01: 3.0})
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
    assert small == Point(shape=GRIDS[100][0], budget=100, learning_rate=0.00866, seed=0)


def test_all_rates_diverged_leaves_the_scheme_without_curves() -> None:
    found = points(CONFIG, GRIDS, SEEDS, dict.fromkeys((0.0025, 0.005, 0.01)))
    assert {point.budget for point in found} == {300}
    assert len(found) == 3


def test_records_state_what_a_report_needs() -> None:
    assert stated(CONFIG, middle_of(GRIDS), SEEDS) == {
        "learning_rates": [0.0025, 0.005, 0.01],
        "extensions": 2,
        "exponent": -0.5,
        "margin": 0.01,
        "middle_width": 48,
        "middle_budget": 300,
        "seed": 0,
        "seed_on_curve": True,
        "sizes": 5,
    }


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"learning_rates": (0.01, 0.02)}, "must be three or more that ascend by one ratio"),
        ({"learning_rates": (0.01, 0.02, 0.08)}, "must be three or more that ascend by one ratio"),
        ({"learning_rates": (0.0, 0.1, 0.2)}, "must be three or more that ascend by one ratio"),
        ({"extensions": -1}, "extensions is -1; it must be 0 or more"),
        ({"rate_seed": -1}, "rate_seed is -1; it must lie in"),
        ({"margin": 0.0}, "margin is 0.0; it must be above 0"),
        ({"passes": 0.0}, "passes is 0.0; it must be above 0"),
        ({"sizes": 3}, "sizes is 3"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        IsoFlopConfig(**fields)  # type: ignore[arg-type]
