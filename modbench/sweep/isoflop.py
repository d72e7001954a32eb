"""IsoFLOP suites: which sizes, budgets, learning rates and seeds of a scheme are run. Imports no torch.

The learning rate is chosen at the middle size of the middle budget; all other sizes follow from it by a
law in the width. The law is checked at the ends of the middle budget before the curves run, and its
exponent fitted again if it fails; it is checked once more at the largest budget.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import log
from typing import Any

from modbench.analysis.learning_rate import (
    RateChoice,
    choose_rate,
    neighbours,
    rate_at,
    refined_exponent,
)
from modbench.model.config import ModelConfig
from modbench.sweep.tables import DepthConfig


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a scheme."""

    shape: ModelConfig
    budget: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Middle:
    """Where learning rates are tried."""

    shape: ModelConfig
    budget: int


def middle_of(grids: Mapping[int, Sequence[ModelConfig]]) -> Middle:
    """The middle size of the middle budget of ``grids``: shapes in ascending order by budget."""
    budgets = sorted(grids)
    budget = budgets[len(budgets) // 2]
    return Middle(grids[budget][len(grids[budget]) // 2], budget)


def chosen_rate(config: DepthConfig, losses: Mapping[float, float | None]) -> RateChoice:
    """The choice among the rates whose ``losses`` at the middle are known; None: diverged."""
    return choose_rate(config.learning_rates, losses, config.extensions)


def rate_seed(config: DepthConfig, seeds: Sequence[int]) -> int:
    """The seed of the runs that choose and check learning rates."""
    if config.rate_seed is not None:
        return config.rate_seed
    return next(seed for seed in count(100) if seed not in seeds)


def trials(
    config: DepthConfig,
    grids: Mapping[int, Sequence[ModelConfig]],
    seeds: Sequence[int],
    losses: Mapping[float, float | None],
) -> list[Point]:
    """The runs that try learning rates, given the ``losses`` of those tried so far."""
    middle, wanted = middle_of(grids), chosen_rate(config, losses).wanted
    rates = sorted([*losses, *wanted])
    seed = rate_seed(config, seeds)
    return [_point(middle.shape, middle.budget, rate, seed) for rate in rates]


def ends(
    config: DepthConfig,
    grids: Mapping[int, Sequence[ModelConfig]],
    seeds: Sequence[int],
    best: float,
) -> list[Point]:
    """The runs that check the law of the learning rate, given the ``best`` one at the middle: its rate
    and the neighbours, at the smallest and the largest size of the middle budget."""
    middle = middle_of(grids)
    shapes = grids[middle.budget]
    checked = (shapes[0], shapes[-1]) if config.refine else (shapes[-1],)
    at = ((shape, middle.budget, config.exponent) for shape in checked)
    return [point for shape_at in at for point in _around(config, middle, best, *shape_at, seeds)]


def points(
    config: DepthConfig,
    grids: Mapping[int, Sequence[ModelConfig]],
    seeds: Sequence[int],
    losses: Mapping[float, float | None],
    checks: Mapping[tuple[int, float], float | None] | None = None,
) -> list[Point]:
    """The runs of a scheme that are known, given the ``losses`` of the learning rates tried so far, and
    of the ``checks`` of their law by width and rate.

    First the learning rates. Once one is chosen: the check of the law (`ends`), and, once that is done
    and the exponent refined: every size of every budget with the first of ``seeds``, those of the middle
    budget with all; and the same check at the middle size of the largest budget. Without `refine`, the
    check waits for nothing."""
    middle, choice = middle_of(grids), chosen_rate(config, losses)
    runs = trials(config, grids, seeds, losses)
    if choice.verdict == "open" or choice.best is None:
        return runs
    check = ends(config, grids, seeds, choice.best)
    exponent = law_of(config, grids, seeds, choice.best, checks or {})
    if exponent is None:
        return list(dict.fromkeys([*runs, *check]))
    runs += check if config.refine else []
    for budget, shapes in sorted(grids.items()):
        for shape in shapes:
            rate = rate_at(choice.best, middle.shape.width, shape.width, exponent)
            for seed in seeds if budget == middle.budget else seeds[:1]:
                runs.append(_point(shape, budget, rate, seed))
    largest = max(grids)
    if not config.refine:
        runs += check
    elif largest != middle.budget:
        shape = grids[largest][len(grids[largest]) // 2]
        runs += _around(config, middle, choice.best, shape, largest, exponent, seeds)
    return list(dict.fromkeys(runs))


def law_of(
    config: DepthConfig,
    grids: Mapping[int, Sequence[ModelConfig]],
    seeds: Sequence[int],
    best: float,
    checks: Mapping[tuple[int, float], float | None],
) -> float | None:
    """The exponent of the law of learning rates that the curves follow; None while a run of its check is
    not among ``checks``."""
    if not config.refine:
        return config.exponent
    tried = _by_width(ends(config, grids, seeds, best), checks)
    width = middle_of(grids).shape.width
    if tried is None:
        return None
    return refined_exponent(config.exponent, best, width, tried, config.law_margin)


def shift_of(sizes: Sequence[float], losses: Sequence[float | None], spacing: float) -> int:
    """The steps, -1 to 1, by which the grids of other budgets move, from the ``losses`` of a curve over
    active parameters ``sizes``: towards the minimum of its parabola, or beyond the edge that is best.
    None is a diverged run."""
    from modbench.analysis.curve import VERDICTS, parabola  # loads scipy

    centre = sizes[len(sizes) // 2]
    known = [(size, loss) for size, loss in zip(sizes, losses, strict=True) if loss is not None]
    minimum = parabola(*zip(*known, strict=True)) if len(known) > 2 else None
    if minimum is None:
        return 0
    verdict = VERDICTS[int(minimum.verdicts[0])]
    if verdict == "interior":
        steps = round(log(float(minimum.sizes[0]) / centre) / log(spacing))
        return max(-1, min(1, steps))
    return {"edge-low": -1, "edge-high": 1}.get(verdict, 0)


def _by_width(
    check: Sequence[Point], losses: Mapping[tuple[int, float], float | None]
) -> dict[int, dict[float, float | None]] | None:
    """The ``losses`` of the runs of ``check`` by width and rate; None if one is missing."""
    tried: dict[int, dict[float, float | None]] = {}
    for point in check:
        width, rate = point.shape.width, point.learning_rate
        if (width, rate) not in losses:
            return None
        tried.setdefault(width, {})[rate] = losses[width, rate]
    return tried


def _around(
    config: DepthConfig,
    middle: Middle,
    best: float,
    shape: ModelConfig,
    budget: int,
    exponent: float,
    seeds: Sequence[int],
) -> list[Point]:
    """The runs of ``shape`` with the law's rate and its neighbours."""
    rate = rate_at(best, middle.shape.width, shape.width, exponent)
    rates = (rate, *neighbours(config.learning_rates, rate))
    return [_point(shape, budget, each, rate_seed(config, seeds)) for each in rates]


def _point(shape: ModelConfig, budget: int, rate: float, seed: int) -> Point:
    return Point(shape=shape, budget=budget, learning_rate=rate, seed=seed)


def stated(
    config: DepthConfig, margin: float, middle: Middle, seeds: Sequence[int], depth: int | None
) -> dict[str, Any]:
    """The entry ``isoflop`` in the suite of each record, so that a report needs records only."""
    seed = rate_seed(config, seeds)
    return {
        "learning_rates": list(config.learning_rates),
        "extensions": config.extensions,
        "exponent": config.exponent,
        "margin": margin,
        "middle_width": middle.shape.width,
        "middle_budget": middle.budget,
        "seed": seed,
        "seed_on_curve": seed in seeds,
        "sizes": config.sizes,
        **({"depth": depth} if depth else {}),
        **({"refine": True, "law_margin": config.law_margin} if config.refine else {}),
    }
