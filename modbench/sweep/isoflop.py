"""The experimental design of isoFLOP suites: which sizes, budgets, learning rates and seeds of a scheme
are run, and in which order they follow from each other's losses. Imports no torch."""

import json
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from math import log
from typing import Any

from modbench.analysis.learning_rate import choose_rate, neighbours, rate_at, refined_exponent
from modbench.model.config import ModelConfig
from modbench.records.run import RouterCode, Run
from modbench.sweep.rows import Resolved, Rows
from modbench.sweep.tables import DepthConfig, Scheme

#: Further rates to try while the best one is at an end.
EXTENSIONS = 2
#: Loss in nats per token that the law may lose at either end: above the noise of a single run.
LAW_MARGIN = 0.03

Grids = Mapping[int, Sequence[ModelConfig]]  #: shapes in ascending order, by budget


@dataclass(frozen=True)
class Point:
    """One run of a scheme."""

    shape: ModelConfig
    budget: int
    learning_rate: float
    seed: int


Losses = Mapping[Point, float | None]  #: of runs that are done; None: diverged


@dataclass(frozen=True)
class Wants:
    """Runs that settle the learning ``rates`` before any curve, and others."""

    rates: Sequence[Point]
    others: Sequence[Point]


@dataclass(frozen=True)
class Middle:
    """The middle size of the middle budget of grids."""

    shape: ModelConfig
    budget: int

    @classmethod
    def of(cls, grids: Grids) -> "Middle":
        budget = sorted(grids)[len(grids) // 2]
        return cls(grids[budget][len(grids[budget]) // 2], budget)


def design(config: DepthConfig, grids: Grids, seeds: Sequence[int]) -> Generator[Wants, Losses, None]:
    """Yield all runs that are wanted so far; expect the losses of those that are done. A stage waits for
    the losses that decide it."""
    middle = Middle.of(grids)
    at_middle = grids[middle.budget]
    rates = list[Point]()
    best = 0.0

    def on_law(shape: ModelConfig, exponent: float) -> float:
        return rate_at(best, middle.shape.width, shape.width, exponent)

    def around(shape: ModelConfig, budget: int, exponent: float) -> list[Point]:
        """The rate of the law, and its neighbours."""
        rate = on_law(shape, exponent)
        near = (rate, *neighbours(config.learning_rates, rate))
        return [Point(shape, budget, each, rate_seed(config, seeds)) for each in near]

    def wants(others: Sequence[Point]) -> Wants:
        of_rates = set(rates)
        return Wants(rates, [point for point in dict.fromkeys(others) if point not in of_rates])

    # The learning rate: at the middle size and budget, until the best one has worse neighbours.
    tried: dict[float, float | None] = {}
    while wanted := (choice := choose_rate(config.learning_rates, tried, EXTENSIONS)).wanted:
        rates = [
            Point(middle.shape, middle.budget, rate, rate_seed(config, seeds))
            for rate in sorted([*tried, *wanted])
        ]
        losses = yield wants([])
        tried = {point.learning_rate: losses[point] for point in rates if point in losses}
        if len(tried) < len(rates):
            return
    if choice.best is None:
        return
    best = choice.best

    # Its law in the width: checked at the ends of the middle budget, and fitted again if it fails there.
    exponent = config.exponent
    check = around(at_middle[-1], middle.budget, exponent)
    if config.refine:
        check = around(at_middle[0], middle.budget, exponent) + check
        rates = list(dict.fromkeys([*rates, *check]))
        losses = yield wants([])
        if not losses.keys() >= {*check}:
            return
        by_width: dict[int, dict[float, float | None]] = defaultdict(dict)
        for point in check:
            by_width[point.shape.width][point.learning_rate] = losses[point]
        exponent = refined_exponent(exponent, best, middle.shape.width, by_width, LAW_MARGIN)

    # The curves: that of the middle budget with all seeds, the others with one.
    curves = [
        Point(shape, budget, on_law(shape, exponent), seed)
        for budget, shapes in sorted(grids.items())
        for shape in shapes
        for seed in (seeds if budget == middle.budget else seeds[:1])
    ]

    # The law once more, at the middle size of the largest budget.
    largest = max(grids)
    if config.refine and largest != middle.budget:
        check = around(grids[largest][len(grids[largest]) // 2], largest, exponent)
    yield wants([*curves, *check])


def rate_seed(config: DepthConfig, seeds: Sequence[int]) -> int:
    """The seed of the runs that choose and check learning rates."""
    if config.rate_seed is not None:
        return config.rate_seed
    return next(seed for seed in count(100) if seed not in seeds)


def isoflop_runs(rows: Rows, scheme: Scheme, done: Mapping[str, float | None] | None) -> list[Run]:
    """The runs of ``scheme`` that are known now that those of ``done`` are; None: as if the middle
    learning rate is best and its law holds."""
    suite = rows.suite
    config = suite.family_of(scheme)
    table = suite.training_of(scheme)
    router = router_code(rows.resolved[scheme.name])
    grids = grids_of(rows, scheme)
    middle = Middle.of(grids)
    middle_rate = config.learning_rates[len(config.learning_rates) // 2]

    @cache
    def run_of(point: Point) -> Run:
        return Run(
            router=router,
            model=point.shape,
            data=suite.data,
            train=replace(table, learning_rate=point.learning_rate).config(),
            schedule=table.schedule_of(point.budget),
            seed=point.seed,
        )

    def losses_of(points: Sequence[Point]) -> Losses:
        if done is not None:
            keys = {point: run_of(point).key for point in points}
            return {point: done[key] for point, key in keys.items() if key in done}
        laws = {
            point: rate_at(middle_rate, middle.shape.width, point.shape.width, config.exponent)
            for point in points
        }
        return {point: abs(log(point.learning_rate / law)) for point, law in laws.items()}

    stages = design(config, grids, suite.axes.seeds)
    wants = next(stages)
    with suppress(StopIteration):
        while True:
            wants = stages.send(losses_of([*wants.rates, *wants.others]))
    return [run_of(point) for point in (*wants.rates, *wants.others)]


def router_code(row: Resolved) -> RouterCode:
    """The router of ``row`` as its runs state it."""
    options = json.loads(json.dumps(row.options))  # lists for tuples, as records have them
    return RouterCode(name=row.name, options=options, plugin_sha256=row.plugin_sha256)


def grids_of(rows: Rows, scheme: Scheme) -> Grids:
    """The isoFLOP grid of ``scheme`` at each budget."""
    return dict(zip(rows.suite.axes.budgets, rows.resolved[scheme.name].grids, strict=True))


def stated(rows: Rows, scheme: Scheme) -> dict[str, Any]:
    """The entry ``isoflop`` of ``scheme`` in the suite's record, so that a report needs records only."""
    assert rows.suite.isoflop is not None
    config = rows.suite.family_of(scheme)
    seeds = rows.suite.axes.seeds
    middle = Middle.of(grids_of(rows, scheme))
    seed = rate_seed(config, seeds)
    return {
        "learning_rates": list(config.learning_rates),
        "extensions": EXTENSIONS,
        "exponent": config.exponent,
        "margin": rows.suite.isoflop.margin,
        "middle_width": middle.shape.width,
        "middle_budget": middle.budget,
        "seed": seed,
        "seed_on_curve": seed in seeds,
        "sizes": config.sizes,
        **({"depth": scheme.depth} if scheme.depth else {}),
        **({"refine": True, "law_margin": LAW_MARGIN} if config.refine else {}),
    }
