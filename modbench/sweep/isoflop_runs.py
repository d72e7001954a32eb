"""Runs of one scheme of an isoFLOP suite, at one depth, that follow from the losses that are known.
Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import log

from modbench.analysis.learning_rate import rate_at
from modbench.model.config import ModelConfig
from modbench.records.line import key_of
from modbench.records.run import RouterCode, Run
from modbench.sweep.isoflop import (
    Point,
    chosen_rate,
    ends,
    law_of,
    middle_of,
    points,
    shift_of,
    trials,
)
from modbench.sweep.rows import Resolved, Rows
from modbench.sweep.tables import Scheme
from modbench.train.schedule import Schedule


def router_code(row: Resolved) -> RouterCode:
    """The router of ``row`` as its runs state it."""
    options = json.loads(json.dumps(row.options))  # lists for tuples, as records have them
    return RouterCode(name=row.name, options=options, plugin_sha256=row.plugin_sha256)


def isoflop_runs(rows: Rows, scheme: Scheme, done: Mapping[str, float | None] | None) -> list[Run]:
    """The runs of ``scheme`` that are known now that those of ``done`` are; None: as if the middle
    learning rate is best and its law holds."""
    suite = rows.suite
    row = rows.resolved[scheme.name]
    config = suite.family_of(scheme)
    seeds = suite.axes.seeds
    grids = grids_of(rows, scheme)
    table = suite.training_of(scheme)
    router = router_code(row)

    @cache
    def run_of(point: Point) -> Run:
        return Run(
            router=router,
            model=point.shape,
            data=suite.data,
            train=replace(table, learning_rate=point.learning_rate).config(),
            schedule=_on_curve(table.schedule_of((point.budget,)), min(grids)),
            seed=point.seed,
        )

    def loss(point: Point, expected: float) -> float | None:
        """That of a run that is done, or as if ``expected`` is the best rate."""
        distance = abs(log(point.learning_rate / expected))
        return distance if done is None else done[run_of(point).key]

    def known(points: Sequence[Point]) -> list[Point]:
        return [point for point in points if done is None or run_of(point).key in done]

    middle_rate = config.learning_rates[len(config.learning_rates) // 2]
    losses: dict[float, float | None] = {}
    while True:
        tried = trials(config, grids, seeds, losses)
        fresh = [point for point in known(tried) if point.learning_rate not in losses]
        if not fresh:
            break
        losses |= {point.learning_rate: loss(point, middle_rate) for point in fresh}
    checks: dict[tuple[int, float], float | None] = {}
    best = chosen_rate(config, losses).best
    width = middle_of(grids).shape.width
    if best is not None:
        for point in known(law := ends(config, grids, seeds, best)):
            rate = rate_at(best, width, point.shape.width, config.exponent)
            checks[point.shape.width, point.learning_rate] = loss(point, rate)
        tried += law if config.refine else []
    grid_points = points(config, grids, seeds, losses, checks)
    if config.recentre and done is not None and best is not None:
        middle = middle_of(grids)
        exponent = law_of(config, grids, seeds, best, checks) or 0.0
        curve = {
            point.shape: done[run_of(point).key]
            for point in known(grid_points)
            if (point.budget, point.seed) == (middle.budget, seeds[0])
            and point.learning_rate == rate_at(best, width, point.shape.width, exponent)
        }
        if len(curve) < config.sizes:  # the other budgets wait for the middle one
            grid_points = [point for point in grid_points if point.budget == middle.budget]
        else:
            sizes = row.grid_sizes[suite.axes.budgets.index(middle.budget)]
            of_sizes = [curve[shape] for shape in grids[middle.budget]]
            moved = grids_of(rows, scheme, shift_of(sizes, of_sizes, config.spacing))
            grid_points = points(config, moved, seeds, losses, checks)
    if table.schedule == "cosine":
        return [run_of(point) for point in grid_points]
    rates = [run_of(point) for point in grid_points if point in tried]
    curves = [run_of(point) for point in grid_points if point not in tried]
    return [*rates, *_on_trunks(curves)]


def _on_curve(schedule: Schedule, smallest: int) -> Schedule:
    """``schedule`` of a run of one budget. That of a trapezoid warms up for as many FLOPs as at the
    ``smallest`` budget, so that all points are alike, whether they share a trunk or not."""
    if schedule.kind == "cosine":
        return schedule
    return replace(schedule, warmup=round(schedule.warmup * smallest / schedule.budgets[0], 12))


def _on_trunks(runs: Sequence[Run]) -> list[Run]:
    """``runs`` of trapezoids, those that differ in their budget only as one."""
    trunks: dict[str, Run] = {}
    for run in runs:
        alike = key_of(run.as_json() | {"schedule": None})
        others = trunks[alike].schedule.budgets if alike in trunks else ()
        budgets = tuple(sorted({*others, *run.schedule.budgets}))
        warm_up = run.schedule.warmup * run.schedule.budgets[0]  # FLOPs
        schedule = replace(run.schedule, budgets=budgets, warmup=round(warm_up / budgets[0], 12))
        trunks[alike] = replace(run, schedule=schedule)
    return list(trunks.values())


def grids_of(rows: Rows, scheme: Scheme, shift: int = 0) -> dict[int, list[ModelConfig]]:
    """The isoFLOP grid of ``scheme`` at each budget; those of other budgets than the middle one moved by
    ``shift`` steps, if there are such grids."""
    row = rows.resolved[scheme.name]
    budgets = rows.suite.axes.budgets
    middle = sorted(budgets)[len(budgets) // 2]
    grids = {}
    for number, budget in enumerate(budgets):
        shapes = row.grids[number]
        if budget != middle and str(shift) in row.shifted:
            shapes = row.shifted[str(shift)][number]
        grids[budget] = [ModelConfig(**shape) for shape in shapes]
    return grids
