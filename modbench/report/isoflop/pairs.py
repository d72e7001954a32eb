"""Differences between any two schemes of an isoFLOP sweep: at their optima, and of runs that differ in
their router only, such as those of a learned router and its random control."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import log
from statistics import fmean

from modbench.analysis.comparison import Compared, difference, family
from modbench.analysis.difference import Difference, judge, line_at_zero, mean_difference
from modbench.records.record import canonical_json
from modbench.records.result import Result
from modbench.report.isoflop.sweep import DENSE, HEADLINE, Sweep
from modbench.report.timing.values import processor_types


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Loss of ``scheme`` minus that of ``other``: at the optima of ``budget`` (at ``depth`` layers, or
    each at its best depth) or, without one, the mean over the cells (shape and budget) of ``runs`` pairs
    of runs with equal settings. ``family``: the comparisons for whose number the verdict is adjusted;
    empty: it is not tested."""

    scheme: str
    other: str
    difference: Difference
    family: str
    same_processor: bool
    margin: float | None  #: within which the two are equivalent; None: not tested
    budget: int | None = None
    depth: int | None = None
    runs: int | None = None
    lower: int | None = None  #: cells with a lower loss
    slope: float | None = None  #: change of the difference per e-fold of the size
    at_optimum: Difference | None = None  #: the line of that slope at the optimal sizes of ``scheme``


def tested_pairs(sweep: Sweep) -> list[Pair]:
    """The differences with a test, by family: those that the suite states; or those with the dense
    model and with the best scheme, and with the dense model at equal depth."""
    if sweep.stated:
        return _stated(sweep)
    pairs = []
    for name, of in (("dense", "difference"), ("best", "to_best")):
        for budget in sweep.budgets:
            lines = sweep.lines(budget)
            first = next((line.optimum.scheme for line in lines if line.position == 1), "")
            other = DENSE if name == "dense" else first
            pairs += [
                _pair(sweep, (budget, line.optimum.scheme, other, None), minus, name)
                for line in lines
                if (minus := getattr(line, of)) is not None and minus.p_adjusted is not None
            ]
    against_dense = [pair for pair in _at_equal_depth(sweep) if pair[2] == DENSE]
    judged = family(sweep.analysis, against_dense, sweep.margin, sweep.untold)
    equal = [_pair(sweep, of, minus, "dense, equal depth") for of, minus in judged.items()]
    return [*pairs, *equal]


def other_pairs(sweep: Sweep) -> list[Pair]:
    """The other pairs of ranked schemes with an interval, at their optima and at equal depth; the lower
    loss first."""
    tested = {(pair.budget, pair.scheme, pair.other, pair.depth) for pair in tested_pairs(sweep)}
    tested |= {(at, other, scheme, depth) for at, scheme, other, depth in tested}
    wanted: list[Compared] = []
    for budget in sweep.budgets:
        ranked = [line.optimum.scheme for line in sweep.lines(budget) if line.position]
        wanted += [(budget, scheme, other, None) for scheme, other in combinations(ranked, 2)]
    found = []
    for of in (*wanted, *_at_equal_depth(sweep)):
        at, scheme, other, depth = of
        if of not in tested:
            minus = difference(sweep.analysis, scheme, other, at, margin=sweep.margin, depth=depth)
            if minus is not None and minus.p is not None:
                found.append(_pair(sweep, of, minus, ""))
    return found


def _stated(sweep: Sweep) -> list[Pair]:
    """The pairs that the suite states and that can be compared."""
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for of in sweep.stated:
        compared = of["budget"], of["a"], of["b"], of.get("depth")
        optima = [sweep.optimum(name, of["budget"], HEADLINE, of.get("depth")) for name in compared[1:3]]
        if not all(at is not None and sweep.is_comparable(at.place) for at in optima):
            continue
        minus = difference(
            sweep.analysis, *compared[1:3], compared[0], margin=of.get("margin"), depth=compared[3]
        )
        if minus is not None:
            minus = replace(minus, untold=sweep.untold or minus.untold)
            pair = replace(_pair(sweep, compared, minus, of["role"]), margin=of.get("margin"))
            pairs[of["role"]].append(pair)
    return [
        replace(pair, difference=minus)
        for of_role in pairs.values()
        for pair, minus in zip(of_role, judge([of.difference for of in of_role]), strict=True)
    ]


def _at_equal_depth(sweep: Sweep) -> list[Compared]:
    """All pairs of comparable schemes with an optimum at the same depth, those with the dense model
    first; none unless the suite has curves of several depths."""
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
    return [*against_dense, *others]


def _pair(sweep: Sweep, compared: Compared, minus: Difference, name: str) -> Pair:
    """The pair ``compared`` of the family ``name``."""
    at, scheme, other, depth = compared
    budget = int(at)
    return Pair(
        scheme=scheme,
        other=other,
        difference=minus,
        family=name,
        same_processor=len(sweep.processors(budget, scheme, other, depth=depth)) < 2,
        margin=sweep.margin,
        budget=budget,
        depth=depth,
    )


def of_equal_runs(sweep: Sweep) -> list[Pair]:
    """All pairs of ranked schemes that share two or more cells: runs on their curves that agree in
    shape, budget, seed, learning rate and all else but the router. Seeds are averaged within a cell.
    None is tested: the mean depends on the sizes that the grid has."""
    runs: dict[str, dict[str, Result]] = defaultdict(dict)
    for record in sweep.curve_records():
        if sweep.is_comparable(record.place):
            settings = canonical_json({**record.record.run, "router": None, "budget": record.budget})
            runs[settings][record.scheme] = record
    matched: dict[tuple[str, str], list[tuple[Result, Result]]] = defaultdict(list)
    for by_scheme in runs.values():
        for schemes in combinations(sorted(by_scheme), 2):
            matched[schemes].append((by_scheme[schemes[0]], by_scheme[schemes[1]]))
    pairs = (_of_cells(sweep, *schemes, equal) for schemes, equal in sorted(matched.items()))
    return [pair for pair in pairs if pair is not None]


def _of_cells(
    sweep: Sweep, scheme: str, other: str, equal: Sequence[tuple[Result, Result]]
) -> Pair | None:
    """The mean over the cells of ``equal`` pairs of runs; None if there is one cell."""
    cells: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    away: dict[tuple[int, int, str], float] = {}
    for ours, theirs in equal:
        cell = ours.budget, ours.depth or 0, canonical_json(ours.model)
        cells[cell].append(ours.metrics["heldout_loss"] - theirs.metrics["heldout_loss"])
        optimum = sweep.optimum(scheme, ours.budget, HEADLINE, ours.depth)
        if optimum is not None and optimum.size is not None:
            away[cell] = log(ours.metrics["active_parameters"] / optimum.size)
    if len(cells) < 2:
        return None
    means = {cell: fmean(cells[cell]) for cell in sorted(cells)}
    known = [cell for cell in means if cell in away]
    line = line_at_zero(
        [away[cell] for cell in known],
        [means[cell] for cell in known],
        [len(cells[cell]) for cell in known],
    )
    return Pair(
        scheme=scheme,
        other=other,
        difference=mean_difference([*means.values()], None),
        family="",
        same_processor=len(processor_types(run for pair in equal for run in pair)) < 2,
        margin=None,
        runs=len(equal),
        lower=sum(mean < 0 for mean in means.values()),
        slope=line and line[0],
        at_optimum=line and line[1],
    )
