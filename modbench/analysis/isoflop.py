"""Optimum of each scheme at each budget, with intervals. Shapes: P sizes, S draws of noise.

The parabola's lowest loss has a t-interval (delta method). Draws of the noise give the interval of its
size, and the choice of a depth: a sweep may have a curve for each of several depths, and the scheme's
optimum is then the lowest of the interior ones. The lowest of several noisy minima lies too low. So
every draw chooses the depth again, and the interval is widened towards the side that the choice hides
(`widened`).

Where the parabola misses the curves of one depth and budget (an F test of their scatter against the
noise between seeds), that scatter takes the place of the noise.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import fdtrc

from modbench.analysis.curve import (
    CURVE_FITS,
    LEAST_SIZES,
    VERDICTS,
    Minima,
    Verdict,
    minimum_weights,
    scatter,
)
from modbench.analysis.difference import LEVEL, Interval, of_parts
from modbench.analysis.noise import (
    Array,
    Cell,
    Noise,
    Run,
    Spread,
    by_cell,
    draw_losses,
    measure_noise,
    pooled,
)
from modbench.analysis.surface import Surface, fit_surface
from modbench.errors import UserError

FITS = (*CURVE_FITS, "surface")
#: The fit whose optima have intervals of differences and verdicts; the others check it.
HEADLINE = "parabola"
#: Draws of the curves: with fewer, the ends of intervals move in the third decimal.
DRAWS = 10_000
#: Draws in a sweep of several depths, where verdicts depend on them: an adjusted p of .05 then has a
#: standard error of .001 to .002.
DRAWS_OF_DEPTHS = 200_000
#: Below this share of draws with an interior optimum, there is no interval.
LEAST_INTERIOR = 0.5
_ONE_SEED = "one seed: no cell was repeated, so the noise is unknown"
#: By how many times the shift of the draws an interval is widened. The draws choose once more among
#: minima that were chosen already, and so show a part of the shift only. With 4, intervals keep their
#: level when up to three depths are equally good (`tests/analysis/test_depths.py`).
WIDENED = 4.0
#: Significant digits of an optimum that are the same on every processor: exp, log and linear algebra
#: round differently on another one, and the search for a surface ends within 1e-9 of its optimal size.
DIGITS = 10
DIGITS_OF_SURFACES = 7


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The optimum of a scheme at a budget by one fit. Size and loss are None unless the verdict is
    interior. The parabola's loss has a t-interval, if the depth was not chosen; other intervals hold 95
    % of the interior draws. They are None, with the reason in ``void``, if there are too few of these,
    if no cell was repeated, or for a surface."""

    scheme: str
    budget: float
    fit: str
    verdict: Verdict
    size: float | None = None
    tokens: float | None = None
    loss: float | None = None
    size_interval: Interval | None = None
    loss_interval: Interval | None = None
    interior_share: float | None = None  #: of the draws
    void: str = ""
    drawn_losses: Array = field(repr=False, compare=False)  #: (S,), NaN where a draw isn't interior
    depth: int | None = None  #: layers, in a sweep of several depths
    depth_share: float | None = None  #: of the draws in which this depth is the best one
    #: the depths among which this one was chosen, those with an interior optimum and an interval
    depths: tuple[int | None, ...] = ()
    scatter: Spread | None = None  #: of the points of the curve around its parabola
    spread: Spread | None = None  #: of one run: the noise between seeds, or `Misfit.scatter`
    factor: float = 0.0  #: variance of the parabola's lowest loss, over that of one run
    seed_weights: Mapping[int, float] = field(default_factory=dict)  #: of the shift of each seed in it
    misfit: bool = False  #: the parabola misses the curves of this depth and budget

    @property
    def place(self) -> tuple[str, int | None]:
        """The scheme and the depth of the curve."""
        return self.scheme, self.depth

    @property
    def at_budget(self) -> tuple[str, float]:
        """The scheme and the budget."""
        return self.scheme, self.budget


@dataclass(frozen=True)
class Misfit:
    """The scatter of one run around the parabolas of one depth and budget, all schemes together, and the
    F test's p-value that it is as large as the noise between seeds; None: the noise is not known."""

    scatter: Spread
    p: float | None

    @property
    def is_found(self) -> bool:
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True)
class IsoFlop:
    """The analysis of a sweep."""

    noise: Noise
    misfits: dict[tuple[int | None, float], Misfit]  #: by depth and budget
    optima: list[Optimum]  #: one for each scheme, budget and fit
    surfaces: dict[tuple[str, int | None], Surface]  #: by scheme and depth
    by_depth: list[Optimum]  #: one for each scheme, depth, budget and fit

    def optimum(self, scheme: str, budget: float, fit: str, depth: int | None = None) -> Optimum:
        """Return the optimum of ``scheme`` at ``budget`` by ``fit``: at ``depth`` layers, or at its best
        depth. Raises KeyError: there is no such curve."""
        of_depth = [optimum for optimum in self.by_depth if optimum.depth == depth]
        for optimum in self.optima if depth is None else of_depth:
            if (optimum.scheme, optimum.budget, optimum.fit) == (scheme, budget, fit):
                return optimum
        raise KeyError((scheme, budget, fit, depth))


def quantiles(values: Array) -> Interval:
    """The central interval that holds 95 % of ``values``."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def rounded(value: float, digits: int = DIGITS) -> float:
    """``value`` to ``digits`` significant digits."""
    return float(f"{value:.{digits}g}")


def _rounded(interval: Interval) -> Interval:
    return rounded(interval[0]), rounded(interval[1])


def widened(values: Array, estimate: float) -> Interval:
    """The interval of an ``estimate`` that is the lowest of several, or the difference of two such ones,
    from draws ``values`` that chose again. Their mean lies beyond the estimate by a part of what the
    estimate lies beyond the truth; the interval is widened on the other side."""
    low, high = quantiles(values)
    down, up = widening(values, estimate)
    return low - down, high + up


def widening(values: Array, estimate: float) -> Interval:
    """By how much `widened` moves both ends of an interval outwards."""
    shift = float(values.mean()) - estimate
    return WIDENED * max(0.0, shift), WIDENED * max(0.0, -shift)


def analyse(
    runs: Iterable[Run], *, draws: int | None = None, seed: int = 0, fits: Sequence[str] = FITS
) -> IsoFlop:
    """Fit every isoFLOP curve of ``runs`` by each of ``fits``: parabola, Akima interpolation, and the
    loss surface of the scheme over all its budgets. The surface gives an optimum only where the
    parabola does. The caller leaves out runs without a finite loss. ``draws``: `DRAWS`, or
    `DRAWS_OF_DEPTHS` in a sweep of several depths, if not given."""
    runs = list(runs)
    noise = measure_noise(runs)
    cells = by_cell(runs)
    curves: dict[tuple[str, int | None], dict[float, _Curve]] = defaultdict(dict)
    rows: dict[tuple[str, int | None, float], list[Cell]] = defaultdict(list)
    for cell in cells:
        rows[cell.scheme, cell.depth, cell.budget].append(cell)
    for (scheme, depth, budget), row in rows.items():
        curves[scheme, depth][budget] = _Curve(row, cells)
    misfits = _misfits(curves, noise)
    draws = draws or (DRAWS_OF_DEPTHS if len({depth for _, depth in curves}) > 1 else DRAWS)

    def spread_of(scheme: str, depth: int | None, budget: float) -> Spread | None:
        misfit = misfits.get((depth, budget))
        return misfit.scatter if misfit and misfit.is_found else noise.of(scheme)

    def of_cell(cell: Cell) -> Spread | None:
        return spread_of(cell.scheme, cell.depth, cell.budget)

    drawn = draw_losses(runs, of_cell, noise.shift, draws, seed)
    by_depth: list[Optimum] = []
    surfaces = {}
    for (scheme, depth), of_budgets in curves.items():
        if "surface" in fits and (surface := _surface([*of_budgets.values()])) is not None:
            surfaces[scheme, depth] = surface
        for budget, curve in of_budgets.items():
            misfit = misfits.get((depth, budget))
            parts = {
                "scheme": scheme,
                "budget": budget,
                "depth": depth,
                "scatter": curve.scatter,
                "spread": spread_of(scheme, depth, budget),
                "misfit": misfit is not None and misfit.is_found,
            }
            noisy = np.stack([drawn[cell] for cell in curve.row], axis=1)
            for fit in fits:
                if fit == "surface":
                    optimum = curve.of_surface(surfaces.get((scheme, depth)), parts)
                else:
                    # Nothing but an interval of the size depends on the draws of the other fit.
                    some = noisy if fit == HEADLINE else noisy[:DRAWS]
                    optimum = curve.optimum(fit, some, noise.shift, parts)
                by_depth.append(optimum)
    return IsoFlop(noise, misfits, _best_depths(by_depth), surfaces, by_depth)


class _Curve:
    """The means of the cells ``row`` of one scheme, depth and budget, in ascending order of size."""

    def __init__(self, row: list[Cell], cells: dict[Cell, dict[int, Run]]) -> None:
        self.runs = runs = [[*cells[cell].values()] for cell in row]
        self.row = row
        self.sizes = np.array([cell.size for cell in row])
        self.tokens = np.array([np.mean([run.tokens for run in of]) for of in runs])
        self.losses = np.array([np.mean([run.loss for run in of]) for of in runs])
        self.seeds = np.array([len(of) for of in runs])
        self.scatter = scatter(self.sizes, self.losses, self.seeds)

    def optimum(self, fit: str, noisy: Array, shift: Spread, parts: Mapping[str, Any]) -> Optimum:
        """The optimum by ``fit`` of the curve and of its draws ``noisy`` (S, P). ``parts``: further
        fields."""
        point = CURVE_FITS[fit](self.sizes, self.losses)
        if not point.interior[0]:
            return self._nothing(fit, point, noisy, parts)
        drawn, spread = CURVE_FITS[fit](self.sizes, noisy), parts["spread"]
        share = None if spread is None else float(drawn.interior.mean())
        void = ""
        if share is None:
            void = _ONE_SEED
        elif share < LEAST_INTERIOR:
            void = f"only {share:.0%} of the draws have an interior optimum"
        optimum = self._at(fit, point, DIGITS, parts)
        if void:
            nothing = np.full(len(noisy), np.nan)
            return replace(optimum, interior_share=share, void=void, drawn_losses=nothing)
        factor, interval = 0.0, quantiles(drawn.losses[drawn.interior])
        seed_weights: dict[int, float] = {}
        if fit == HEADLINE:
            weights = minimum_weights(self.sizes, point.sizes[0])
            factor = float((weights**2 / self.seeds).sum())
            seed_weights = self._seed_weights(weights)
            parts_of = [(spread, factor), (shift, square_sum(seed_weights))]
            interval = of_parts(point.losses[0], parts_of).interval or interval
        return replace(
            optimum,
            size_interval=_rounded(quantiles(drawn.sizes[drawn.interior])),
            loss_interval=_rounded(interval),
            interior_share=share,
            drawn_losses=drawn.losses,
            factor=factor,
            seed_weights=seed_weights,
        )

    def _seed_weights(self, weights: Array) -> dict[int, float]:
        """The weight of each seed's shift in a sum of the losses by ``weights`` (P,)."""
        of_seed: dict[int, float] = defaultdict(float)
        for weight, runs in zip(weights, self.runs, strict=True):
            for run in runs:
                of_seed[run.seed] += float(weight) / len(runs)
        return dict(of_seed)

    def log_tokens(self, log_sizes: Array | float) -> Array:
        """Log tokens at ``log_sizes``."""
        return np.asarray(PchipInterpolator(np.log(self.sizes), np.log(self.tokens))(log_sizes))

    def of_surface(self, surface: Surface | None, parts: Mapping[str, Any]) -> Optimum:
        """The minimum of ``surface`` along the curve, if the parabola has one."""
        shape = CURVE_FITS[HEADLINE](self.sizes, self.losses)
        if not shape.interior[0]:
            point = shape
        elif surface is None or len(self.sizes) < LEAST_SIZES:
            nothing = np.full(1, np.nan)
            point = Minima(np.full(1, VERDICTS.index("too-few")), nothing, nothing)
        else:
            point = self._along(surface)
        if not point.interior[0]:
            return self._nothing("surface", point, np.empty((0, 0)), parts)
        void = "a surface has none" if parts["spread"] else _ONE_SEED
        return replace(self._at("surface", point, DIGITS_OF_SURFACES, parts), void=void)

    def _along(self, surface: Surface) -> Minima:
        log_sizes = np.linspace(np.log(self.sizes[0]), np.log(self.sizes[-1]), 801)
        losses = surface.loss(np.exp(log_sizes), np.exp(self.log_tokens(log_sizes)))
        best = int(losses.argmin())
        verdict = {0: 1, len(losses) - 1: 2}.get(best, 0)
        return Minima(np.array([verdict]), np.exp(log_sizes[[best]]), losses[[best]])

    def _at(self, fit: str, point: Minima, digits: int, parts: Mapping[str, Any]) -> Optimum:
        size = point.sizes[0]
        return Optimum(
            fit=fit,
            verdict="interior",
            size=rounded(size, digits),
            tokens=rounded(float(np.exp(self.log_tokens(np.log(size)))), digits),
            loss=rounded(point.losses[0], digits),
            drawn_losses=np.empty(0),
            **parts,
        )

    def _nothing(self, fit: str, point: Minima, noisy: Array, parts: Mapping[str, Any]) -> Optimum:
        verdict = VERDICTS[int(point.verdicts[0])]
        return Optimum(fit=fit, verdict=verdict, drawn_losses=np.full(len(noisy), np.nan), **parts)


def square_sum(weights: Mapping[int, float]) -> float:
    """The sum of the squares of ``weights`` by seed."""
    return math.fsum(weight**2 for weight in weights.values())


def _misfits(
    curves: Mapping[tuple[str, int | None], Mapping[float, _Curve]], noise: Noise
) -> dict[tuple[int | None, float], Misfit]:
    """The scatter around all parabolas of each depth and budget, and its test against the noise."""
    scatters: dict[tuple[int | None, float], list[Spread]] = defaultdict(list)
    for (_, depth), of_budgets in curves.items():
        for budget, curve in of_budgets.items():
            if curve.scatter is not None:
                scatters[depth, budget].append(curve.scatter)
    misfits = {}
    for place, of_schemes in scatters.items():
        around = pooled(of_schemes)
        if around is None:
            continue
        p = None
        if noise.pooled is not None and noise.pooled.sd > 0:
            ratio = (around.sd / noise.pooled.sd) ** 2
            p = float(fdtrc(around.freedom, noise.pooled.freedom, ratio))
        misfits[place] = Misfit(around, p)
    return misfits


def _surface(curves: Sequence[_Curve]) -> Surface | None:
    """The surface of a scheme over its budgets; None: there are too few of them, or of their runs."""
    if len(curves) < 2:
        return None
    columns = ([getattr(curve, name) for curve in curves] for name in ("sizes", "tokens", "losses"))
    try:
        return fit_surface(*map(np.concatenate, columns))
    except UserError:  # too few runs
        return None


def _best_depths(by_depth: Sequence[Optimum]) -> list[Optimum]:
    """The best of the optima of each scheme, budget and fit."""
    groups: dict[tuple[str, float, str], list[Optimum]] = defaultdict(list)
    for optimum in by_depth:
        groups[optimum.scheme, optimum.budget, optimum.fit].append(optimum)
    return [group[0] if len(group) == 1 else _best_depth(group) for group in groups.values()]


def _best_depth(group: Sequence[Optimum]) -> Optimum:
    """The lowest of the interior optima of several depths; without any, the first of ``group``."""
    interior = [optimum for optimum in group if optimum.loss is not None]
    if not interior:
        return group[0]
    best = min(interior, key=lambda optimum: optimum.loss or 0.0)
    usable = tuple(optimum for optimum in interior if not optimum.void)
    if len(usable) < 2 or best.void or not len(best.drawn_losses):
        return best
    drawn = np.stack([np.where(np.isnan(at.drawn_losses), np.inf, at.drawn_losses) for at in usable])
    lowest = drawn.min(axis=0)
    chosen = np.isfinite(lowest)
    best_draws = np.isfinite(best.drawn_losses) & (best.drawn_losses == lowest)
    return replace(
        best,
        loss_interval=widened(lowest[chosen], best.loss or 0.0),
        drawn_losses=np.where(chosen, lowest, np.nan),
        depth_share=float(best_draws.sum() / chosen.sum()),
        depths=tuple(optimum.depth for optimum in usable),
    )
