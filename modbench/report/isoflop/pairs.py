"""Differences between any two schemes of an isoFLOP sweep: at their optima, and of runs that differ in
their router only, such as those of a learned router and its random control."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from statistics import fmean

from modbench.analysis.comparison import Compared, family
from modbench.analysis.difference import Difference, judge, mean_difference
from modbench.records.record import canonical_json
from modbench.records.result import Result
from modbench.report.isoflop.sweep import DENSE, HEADLINE, Sweep
from modbench.report.processor import processor_types

#: Budget, depth (0: the suite has one) and shape.
_Cell = tuple[int, int, str]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Loss of ``scheme`` minus that of ``other``: at the optima of ``budget`` (at ``depth`` layers, or
    each at its best depth) or, without one, the mean over the cells (shape and budget) of ``runs`` pairs
    of runs with equal settings. ``family``: the comparisons for whose number the verdict is adjusted."""

    scheme: str
    other: str
    difference: Difference
    family: str
    same_processor: bool
    budget: int | None = None
    depth: int | None = None
    runs: int | None = None
    lower: int | None = None  #: cells with a lower loss
    trend: float | None = None  #: change of the difference from one size to the next larger one


def with_dense(sweep: Sweep) -> Iterator[Pair]:
    """The differences to the dense model of the page's tables."""
    for budget in sweep.budgets:
        for line in sweep.lines(budget):
            if line.difference is not None and line.difference.verdict is not None:
                yield Pair(
                    scheme=line.optimum.scheme,
                    other=DENSE,
                    difference=line.difference,
                    family="dense",
                    same_processor=line.same_processor,
                    budget=budget,
                )


def at_optima(sweep: Sweep) -> Iterator[Pair]:
    """All other pairs of ranked schemes with an optimum and an interval; the lower loss first."""
    pairs: list[Compared] = []
    for budget in sweep.budgets:
        ranked = [line.optimum.scheme for line in sweep.lines(budget) if line.position]
        names = [name for name in ranked if name != DENSE]
        pairs += [(budget, scheme, other, None) for scheme, other in combinations(names, 2)]
    yield from _judged(sweep, pairs, "other pairs")


def at_equal_depth(sweep: Sweep) -> list[Pair]:
    """All pairs of schemes with an optimum and an interval at the same depth, those with the dense model
    first: two families of comparisons. Empty unless the suite has curves of several depths."""
    against_dense: list[Compared] = []
    others: list[Compared] = []
    for budget, depth in product(sweep.budgets, sweep.depths):
        optima = [
            optimum
            for optimum in sweep.analysis.by_depth
            if (optimum.fit, optimum.budget, optimum.depth) == (HEADLINE, budget, depth)
            and optimum.loss is not None
            and sweep.is_comparable(optimum.place)
        ]
        names = [at.scheme for at in sorted(optima, key=lambda at: (at.loss or 0.0, at.scheme))]
        if DENSE in names:
            names.remove(DENSE)
            against_dense += [(budget, scheme, DENSE, depth) for scheme in names]
        others += [(budget, scheme, other, depth) for scheme, other in combinations(names, 2)]
    return [
        *_judged(sweep, against_dense, "dense, equal depth"),
        *_judged(sweep, others, "other pairs, equal depth"),
    ]


def _judged(sweep: Sweep, pairs: Sequence[Compared], name: str) -> Iterator[Pair]:
    """The differences at the optima of the family ``name``."""
    judged = family(sweep.analysis, pairs, HEADLINE, sweep.margin)
    for (at, scheme, other, depth), difference in judged.items():
        budget = int(at)
        yield Pair(
            scheme=scheme,
            other=other,
            difference=difference,
            family=name,
            same_processor=len(sweep.processors(budget, scheme, other, depth=depth)) < 2,
            budget=budget,
            depth=depth,
        )


def of_equal_runs(sweep: Sweep) -> list[Pair]:
    """All pairs of ranked schemes that share two or more cells: runs on their curves that agree in
    shape, budget, seed, learning rate and all else but the router. Seeds are averaged within a cell."""
    runs: dict[str, dict[str, Result]] = defaultdict(dict)
    for record in sweep.curve_records():
        if sweep.is_comparable(record.place):
            settings = canonical_json({**record.record.run, "router": None, "budget": record.budget})
            runs[settings][record.scheme] = record
    matched: dict[tuple[str, str], list[tuple[Result, Result]]] = defaultdict(list)
    for by_scheme in runs.values():
        for schemes in combinations(sorted(by_scheme), 2):
            matched[schemes].append((by_scheme[schemes[0]], by_scheme[schemes[1]]))
    pairs = [
        pair
        for schemes, equal in sorted(matched.items())
        if (pair := _of_cells(*schemes, equal, sweep.margin)) is not None
    ]
    judged = judge([pair.difference for pair in pairs])
    return [replace(pair, difference=minus) for pair, minus in zip(pairs, judged, strict=True)]


def _of_cells(
    scheme: str, other: str, equal: Sequence[tuple[Result, Result]], margin: float
) -> Pair | None:
    """The mean over the cells of ``equal`` pairs of runs; None if there is one cell."""
    cells: dict[_Cell, list[float]] = defaultdict(list)
    sizes: dict[_Cell, float] = {}
    for ours, theirs in equal:
        cell = ours.budget, ours.depth or 0, canonical_json(ours.model)
        cells[cell].append(ours.metrics["heldout_loss"] - theirs.metrics["heldout_loss"])
        sizes[cell] = ours.metrics["active_parameters"]
    if len(cells) < 2:
        return None
    means = {cell: fmean(cells[cell]) for cell in sorted(cells)}
    return Pair(
        scheme=scheme,
        other=other,
        difference=mean_difference([*means.values()], margin),
        family="equal runs",
        same_processor=len(processor_types(run for pair in equal for run in pair)) < 2,
        runs=len(equal),
        lower=sum(mean < 0 for mean in means.values()),
        trend=_trend(means, sizes),
    )


def _trend(means: Mapping[_Cell, float], sizes: Mapping[_Cell, float]) -> float | None:
    """The least-squares slope of ``means`` over the number of the size among those of its budget and
    depth, with a constant for each of these; None if none has two sizes."""
    steps: list[tuple[float, float]] = []
    for curve in sorted({cell[:2] for cell in means}):
        ascending = sorted((cell for cell in means if cell[:2] == curve), key=lambda at: (sizes[at], at))
        middle = fmean(means[cell] for cell in ascending)
        centre = (len(ascending) - 1) / 2
        steps += [(number - centre, means[cell] - middle) for number, cell in enumerate(ascending)]
    square = sum(step**2 for step, _ in steps)
    return sum(step * rise for step, rise in steps) / square if square else None
