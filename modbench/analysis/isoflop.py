"""Optimum of each scheme at each budget, with intervals. Shapes: P sizes, S draws of noise.

A sweep may have a curve for each of several depths. The scheme's optimum is then the lowest of the
interior ones. The lowest of several noisy minima lies too low. So every draw chooses the depth again,
and the interval is widened towards the side that the choice hides (`widened`).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.interpolate import PchipInterpolator

from modbench.analysis.curve import CURVE_FITS, LEAST_SIZES, VERDICTS, Minima, Verdict, parabola, scatter
from modbench.analysis.difference import Interval
from modbench.analysis.noise import Array, Cell, Noise, Run, Spread, by_cell, draw_losses, measure_noise
from modbench.analysis.surface import Surface, fit_surface, refit
from modbench.errors import UserError

FITS = (*CURVE_FITS, "surface")
#: Draws of the curves: with fewer, the ends of intervals move in the third decimal.
DRAWS = 10_000
#: Draws to which a surface is fitted, which takes most of the time; the first ones of the curves.
SURFACE_DRAWS = 1000
#: Below this share of draws with an interior optimum, there is no interval.
LEAST_INTERIOR = 0.5
#: By how many times the shift of the draws an interval is widened. The draws choose once more among
#: minima that were chosen already, and so show a part of the shift only. With 4, intervals keep their
#: level when up to three depths are equally good (`tests/analysis/test_depths.py`).
WIDENED = 4.0
#: Significant digits of an optimum that are the same on every processor: exp, log and linear algebra
#: round differently on another one, and the search for a surface ends within 1e-9 of its optimal size.
DIGITS = 10
DIGITS_OF_SURFACES = 6


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The optimum of a scheme at a budget by one fit. Size and loss are None unless the verdict is
    interior. Intervals hold 95 % of the interior draws; they are None, with the reason in ``void``, if
    there are too few of these or if no cell was repeated."""

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

    @property
    def place(self) -> tuple[str, int | None]:
        """The scheme and the depth of the curve."""
        return self.scheme, self.depth


@dataclass(frozen=True)
class IsoFlop:
    """The analysis of a sweep."""

    noise: Noise
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


def _rounded(interval: Interval, digits: int) -> Interval:
    return rounded(interval[0], digits), rounded(interval[1], digits)


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
    runs: Iterable[Run],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    fits: Sequence[str] = FITS,
    noise: Noise | None = None,
) -> IsoFlop:
    """Fit every isoFLOP curve of ``runs`` by each of ``fits``: parabola, Akima interpolation, and the
    loss surface of the scheme over all its budgets. The surface gives an optimum only where the
    parabola does. The caller leaves out runs without a finite loss. ``noise``: measured from the
    repeated runs if it is not given."""
    runs = list(runs)
    noise = noise or measure_noise(runs)
    cells = by_cell(runs)
    drawn = draw_losses(runs, noise, draws, seed)
    repeated = noise.pooled is not None
    curves: dict[tuple[str, int | None], dict[float, list[Cell]]]
    curves = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        curves[cell.scheme, cell.depth][cell.budget].append(cell)
    by_depth: list[Optimum] = []
    surfaces = {}
    for (scheme, depth), budgets in curves.items():
        surface = None
        if "surface" in fits:
            surface = _Surfaces([cell for row in budgets.values() for cell in row], cells, drawn)
            if surface.fitted is not None:
                surfaces[scheme, depth] = surface.fitted
        for budget, row in budgets.items():
            sizes = np.array([cell.size for cell in row])
            tokens = np.array([_mean_tokens(cells[cell]) for cell in row])
            means = np.array([np.mean([run.loss for run in cells[cell].values()]) for cell in row])
            noisy = np.stack([drawn[cell] for cell in row], axis=1)
            shape = parabola(sizes, means)
            around = scatter(sizes, means, [len(cells[cell]) for cell in row])
            for fit in fits:
                if surface is not None and fit == "surface":
                    point, spread = surface.minima(sizes, tokens)
                    if not shape.interior[0]:  # the curve has no optimum that a surface could show
                        point = shape
                else:
                    point, spread = CURVE_FITS[fit](sizes, means), CURVE_FITS[fit](sizes, noisy)
                key = (scheme, budget, fit)
                optimum = _optimum(key, sizes, tokens, point, spread, repeated)
                by_depth.append(replace(optimum, depth=depth, scatter=around))
    return IsoFlop(noise, _best_depths(by_depth), surfaces, by_depth)


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
    if len(usable) < 2 or best.void:
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


def _mean_tokens(runs: dict[int, Run]) -> float:
    return float(np.mean([run.tokens for run in runs.values()]))


def _optimum(
    key: tuple[str, float, str],
    sizes: Array,
    tokens: Array,
    point: Minima,
    spread: Minima,
    repeated: bool,
) -> Optimum:
    scheme, budget, fit = key
    verdict = VERDICTS[int(point.verdicts[0])]
    losses = spread.losses
    if verdict != "interior":
        nothing = np.full(len(losses), np.nan)
        return Optimum(scheme=scheme, budget=budget, fit=fit, verdict=verdict, drawn_losses=nothing)
    share = float(spread.interior.mean()) if repeated else None
    void = ""
    if share is None:
        void = "one seed: no cell was repeated, so the noise is unknown"
    elif share < LEAST_INTERIOR:
        void = f"only {share:.0%} of the draws have an interior optimum"
    inside = spread.interior
    digits = DIGITS_OF_SURFACES if fit == "surface" else DIGITS
    return Optimum(
        scheme=scheme,
        budget=budget,
        fit=fit,
        verdict=verdict,
        size=rounded(point.sizes[0], digits),
        tokens=rounded(np.exp(_log_tokens(sizes, tokens)(np.log(point.sizes[0]))), digits),
        loss=rounded(point.losses[0], digits),
        size_interval=None if void else _rounded(quantiles(spread.sizes[inside]), digits),
        loss_interval=None if void else _rounded(quantiles(losses[inside]), digits),
        interior_share=share,
        void=void,
        drawn_losses=np.full(len(losses), np.nan) if void else losses,
    )


def _log_tokens(sizes: Array, tokens: Array) -> PchipInterpolator:
    """Log tokens against log size along a curve of equal FLOPs."""
    return PchipInterpolator(np.log(sizes), np.log(tokens))


class _Surfaces:
    """The surface of one scheme and its refits to the draws; without any if the runs don't suffice."""

    def __init__(
        self, row: list[Cell], cells: dict[Cell, dict[int, Run]], drawn: dict[Cell, Array]
    ) -> None:
        sizes = np.array([cell.size for cell in row])
        tokens = np.array([_mean_tokens(cells[cell]) for cell in row])
        means = np.array([np.mean([run.loss for run in cells[cell].values()]) for cell in row])
        self.draws = min(SURFACE_DRAWS, len(drawn[row[0]]))
        self.fitted: Surface | None = None
        self.refits: list[Surface] = []
        if len({cell.budget for cell in row}) < 2:
            return
        try:
            self.fitted = fit_surface(sizes, tokens, means)
        except UserError:  # too few runs: a verdict below
            return
        noise = np.stack([drawn[cell][: self.draws] for cell in row], axis=1) - means
        self.refits = refit(self.fitted, sizes, tokens, self.fitted.loss(sizes, tokens) + noise)

    def minima(self, sizes: Array, tokens: Array) -> tuple[Minima, Minima]:
        """The surface's minimum along the curve of ``sizes`` and ``tokens`` (P,), and the refits'."""
        if self.fitted is None or len(sizes) < LEAST_SIZES:
            few = VERDICTS.index("too-few")
            return _all_alike(1, few), _all_alike(self.draws, few)
        log_sizes = np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 801)
        log_tokens = _log_tokens(sizes, tokens)(log_sizes)
        return _along([self.fitted], log_sizes, log_tokens), _along(self.refits, log_sizes, log_tokens)


def _along(surfaces: list[Surface], log_sizes: Array, log_tokens: Array) -> Minima:
    e, a, b, alpha, beta = np.array([[s.E, s.A, s.B, s.alpha, s.beta] for s in surfaces]).T[:, :, None]
    losses = e + a * np.exp(-alpha * log_sizes) + b * np.exp(-beta * log_tokens)
    best = losses.argmin(axis=1)
    verdicts = np.select([best == 0, best == len(log_sizes) - 1], [1, 2], 0)
    inside = verdicts == 0
    lowest = losses[np.arange(len(losses)), best]
    sizes = np.exp(log_sizes[best])
    return Minima(verdicts, np.where(inside, sizes, np.nan), np.where(inside, lowest, np.nan))


def _all_alike(rows: int, verdict: int) -> Minima:
    nothing = np.full(rows, np.nan)
    return Minima(np.full(rows, verdict), nothing, nothing)
