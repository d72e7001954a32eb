"""Fits of anyone's isoFLOP points: optima of each curve, surfaces, and exponents of the optimum."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np

from modbench.analysis.curve import LEAST_SIZES
from modbench.analysis.isoflop import DRAWS, FITS, IsoFlop, Optimum, analyse
from modbench.analysis.noise import Run
from modbench.analysis.points import Point, Points
from modbench.analysis.surface import Surface, fit_surface
from modbench.errors import UserError

#: In ascending order of FLOPs, a new curve starts where they rise by more than this factor. In public
#: sets, points of one curve follow each other within 1.16, and the nearest budgets are 1.238 apart.
STEP = 1.2
#: Ratio of the FLOPs of a curve's ends above which the points form no curve. In public sets it is
#: at most 1.44.
WIDEST = 2.0
#: Sizes of a curve within this factor are one size: Akima interpolation between sizes that differ by
#: rounding only has no meaning. Sizes read off a published figure differ by up to 2e-6.
SAME_SIZE = 1.001
#: Ratio of the FLOPs of a curve's ends above which a note states it.
_NAMED = 1.01


@dataclass(frozen=True, kw_only=True)
class Exponents:
    """Exponents of N_opt ~ C^size and D_opt ~ C^tokens: a line through the logarithms of the interior
    optima of ``budgets`` budgets, or those of a surface. None, with the reason in ``void``: too few."""

    group: str
    fit: str
    budgets: int
    size: float | None = None
    tokens: float | None = None
    void: str = ""


@dataclass(frozen=True, kw_only=True)
class PointFits:
    """The fits of the points of a file. A run's scheme is the point's group."""

    file: str
    fits: Sequence[str]
    runs: Sequence[Run]  #: repeated points without a seed are one run
    analysis: IsoFlop
    points: Mapping[str, int]  #: number of points of each group
    surfaces: Mapping[str, Surface]  #: by group, fitted to all its points
    exponents: Sequence[Exponents]
    notes: Sequence[str]

    def budgets(self, group: str) -> list[float]:
        return sorted({run.budget for run in self.runs if run.scheme == group})

    def curve(self, group: str, budget: float) -> dict[float, list[float]]:
        """Losses by size, in ascending order of sizes."""
        losses: dict[float, list[float]] = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: run.size):
            if (run.scheme, run.budget) == (group, budget):
                losses[run.size].append(run.loss)
        return losses


def fit_points(read: Points, fits: Sequence[str] = FITS) -> PointFits:
    """Fit the curves of equal FLOPs of each group. Raises UserError: points that form no curves, no
    curve with three sizes, or the same point twice."""
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in read.points:
        groups[point.group].append(point)
    curves = {(group, _budget(curve)): curve for group in groups for curve in _curves(groups[group])}
    notes = [*read.notes]
    widest = max(max(p.flops for p in curve) / min(p.flops for p in curve) for curve in curves.values())
    if widest > _NAMED:
        notes.append(
            f"FLOPs within a curve differ by up to {widest - 1:.0%}; its budget is their median."
        )
    seeded = read.points[0].seed is not None
    runs = [run for key, curve in curves.items() for run in _runs(*key, curve, seeded)]
    if not seeded and (repeats := len(read.points) - len(runs)):
        notes.append(
            f"{repeats} of {len(read.points)} points repeat the size of another point of their curve. "
            "Curves are fitted to the mean of such points, since the file has no column of seeds."
        )
    cells = dict.fromkeys((run.scheme, run.budget, run.size) for run in runs)
    sizes = Counter((group, budget) for group, budget, _ in cells)
    ((_, budget), most), *_ = sizes.most_common(1)
    if most < LEAST_SIZES:
        raise UserError(
            f"{read.file} has no curve of three sizes: the most is {most}, at {budget:.3g} FLOPs; add "
            "sizes at equal FLOPs"
        )
    repeated = len(runs) > len(cells)
    analysis = analyse(runs, draws=DRAWS if repeated else 1, fits=fits)
    surfaces = {}
    for group in groups:
        if (surface := analysis.surfaces.get((group, None))) is not None:
            # That of the analysis is fitted to the means of repeated points.
            repeats = len(groups[group]) > sum(of == group for of, *_ in cells)
            surfaces[group] = _surface(groups[group]) if repeats else surface
    exponents = [
        _of_surface(group, surfaces.get(group), curves)
        if fit == "surface"
        else _of_optima(group, fit, analysis.optima)
        for group in groups
        for fit in fits
    ]
    return PointFits(
        file=read.file.name,
        fits=fits,
        runs=runs,
        analysis=analysis,
        points={group: len(points) for group, points in groups.items()},
        surfaces=surfaces,
        exponents=exponents,
        notes=notes,
    )


def _curves(points: Iterable[Point]) -> list[list[Point]]:
    curves = _in_steps(points, lambda point: point.flops, STEP)
    for curve in curves:
        low, high = curve[0].flops, curve[-1].flops
        if high > WIDEST * low:
            raise UserError(
                f"the points of group '{curve[0].group}' form no curves of equal FLOPs: from {low:.3g} "
                f"to {high:.3g} FLOPs, each has at most {STEP - 1:.0%} more than the one before; give "
                "points at budgets that lie further apart"
            )
    return curves


def _in_steps(
    points: Iterable[Point], value: Callable[[Point], float], step: float
) -> list[list[Point]]:
    """``points`` in ascending order of ``value``, cut where it rises by more than a factor ``step``."""
    ordered = sorted(points, key=value)
    parts = [ordered[:1]]
    for before, point in pairwise(ordered):
        if value(point) > step * value(before):
            parts.append([])
        parts[-1].append(point)
    return parts


def _budget(curve: Sequence[Point]) -> float:
    return float(np.median([point.flops for point in curve]))


def _runs(group: str, budget: float, curve: Iterable[Point], seeded: bool) -> Iterable[Run]:
    for points in _in_steps(curve, lambda point: point.size, SAME_SIZE):
        size = fmean(point.size for point in points)
        seeds: dict[int | None, list[Point]] = defaultdict(list)
        for point in sorted(points, key=lambda point: point.line):
            seeds[point.seed].append(point)
        for seed, repeats in seeds.items():
            if seeded and len(repeats) > 1:
                first, second, *_ = repeats
                raise UserError(
                    f"line {second.line} repeats group, FLOPs, size and seed of line {first.line}; "
                    "remove one of them or correct its seed"
                )
            yield Run(
                scheme=group,
                budget=budget,
                size=size,
                tokens=fmean(point.tokens for point in repeats),
                loss=fmean(point.loss for point in repeats),
                seed=seed or 0,
            )


def _surface(points: Sequence[Point]) -> Surface:
    columns = ([getattr(point, name) for point in points] for name in ("size", "tokens", "loss"))
    return fit_surface(*columns)


def _of_optima(group: str, fit: str, optima: Iterable[Optimum]) -> Exponents:
    interior = [
        (optimum.budget, optimum.size, optimum.tokens)
        for optimum in optima
        if (optimum.scheme, optimum.fit) == (group, fit) and optimum.size and optimum.tokens
    ]
    if len(interior) < 2:
        return Exponents(
            group=group, fit=fit, budgets=len(interior), void="fewer than two interior optima"
        )
    flops, sizes, tokens = np.log(np.array(interior)).T
    away = flops - flops.mean()
    slope = away / (away**2).sum()
    return Exponents(
        group=group,
        fit=fit,
        budgets=len(interior),
        size=float(slope @ sizes),
        tokens=float(slope @ tokens),
    )


def _of_surface(group: str, surface: Surface | None, curves: Iterable[tuple[str, float]]) -> Exponents:
    """Exponents where C is proportional to N D (Hoffmann et al. 2022, equation 4)."""
    budgets = sum(of == group for of, _ in curves)
    if surface is None:
        return Exponents(
            group=group, fit="surface", budgets=budgets, void="fewer than two budgets or six points"
        )
    both = surface.alpha + surface.beta
    return Exponents(
        group=group,
        fit="surface",
        budgets=budgets,
        size=surface.beta / both,
        tokens=surface.alpha / both,
    )
