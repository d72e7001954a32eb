"""IsoFLOP grids: centred by the compute-optimal size, evenly spaced, refused where that can't be had."""

from functools import cache
from itertools import pairwise

import pytest

from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.plan.family import Family
from modbench.plan.solver import Read, isoflop_grid, largest
from modbench.routing.build import meta_decoder

BASE = ModelConfig(vocabulary=512, width=64, layers=4, heads=4)
TOKENS = 256


def read_of(router: str) -> Read:
    @cache
    def read(model: ModelConfig) -> tuple[int, int]:
        decoder = meta_decoder(router, {}, model)
        load = Workload.uniform(1, TOKENS, "train")
        return decoder.ledger(load).total("model"), decoder.parameter_count("active")

    return read


@pytest.mark.parametrize("guess", [1, 7, 500])
@pytest.mark.parametrize("limit", [0.5, 30, 10**4, 10**4 + 0.5, 10**9])
def test_the_largest_number_is_found_in_a_few_steps(limit: float, guess: int) -> None:
    asked = []

    def cost(number: int) -> int:
        asked.append(number)
        return number**2 + 50 * (number // 8) ** 3 + 1  # as depths grow in steps

    number = largest(cost, limit, guess)
    assert cost(number + 1) > limit
    assert number == 0 or cost(number) <= limit
    assert len(asked) <= 15


@pytest.mark.parametrize("router", ["vanilla", "token_choice", "mod"])
@pytest.mark.parametrize("budget", [3 * 10**12, 10**13, 3 * 10**13])
def test_grid_is_centred_on_the_compute_optimal_size(router: str, budget: int) -> None:
    family, read = Family(), read_of(router)
    grid = isoflop_grid(family, BASE, budget, read, TOKENS)
    active = [read(shape)[1] for shape in grid]
    assert len(grid) == 5
    assert all(1 < b / a <= 2 for a, b in pairwise(active))
    assert active[-1] / active[2] <= 4
    assert active[2] / active[0] <= 4
    costs = [20 * read(shape)[0] / TOKENS * read(shape)[1] / budget for shape in grid]
    narrower = family.shape(BASE, grid[2].width // 8 - 1)
    wider = family.shape(BASE, grid[2].width // 8 + 1)
    for other in (narrower, wider):
        cost = 20 * read(other)[0] / TOKENS * read(other)[1] / budget
        assert max(costs[2], 1 / costs[2]) <= max(cost, 1 / cost)


def test_more_tokens_per_parameter_give_smaller_shapes() -> None:
    read = read_of("mod")
    few = isoflop_grid(Family(tokens_per_parameter=20), BASE, 10**13, read, TOKENS)
    many = isoflop_grid(Family(tokens_per_parameter=60), BASE, 10**13, read, TOKENS)
    assert many[2].width < few[2].width


def test_depth_and_heads_follow_the_width() -> None:
    family = Family(width_step=64, head_width=64, aspect=64)
    base = ModelConfig(width=256, layers=4, heads=4, kv_heads=2, mlp_width=640)
    shape = family.shape(base, 8)
    assert (shape.width, shape.layers, shape.heads, shape.kv_heads, shape.mlp_width) == (
        512,
        8,
        8,
        4,
        1280,
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sizes": 4}, "sizes is 4; it must be an odd number, 5 or more"),
        ({"sizes": 7}, "reaches 5.8 times the centre"),
    ],
)
def test_grids_that_prove_nothing_are_refused(fields: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Family(**fields)  # type: ignore[arg-type]


def test_family_too_coarse_for_its_spacing_is_refused() -> None:
    with pytest.raises(UserError, match=r"times apart .* lower width_step"):
        isoflop_grid(Family(width_step=96), BASE, 10**16, read_of("vanilla"), TOKENS)
