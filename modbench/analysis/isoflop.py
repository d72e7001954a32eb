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
from itertools import groupby
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import fdtrc

from modbench.analysis.curve import (
    CURVE_FITS,
    VERDICTS,
    Minima,
    MinimumVerdict,
    minima,
    minimum_weights,
    nothing,
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
#: A scheme and the depth of its curves; None: the sweep has one depth.
Place = tuple[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The optimum of a scheme at a budget and depth by one fit. Size and loss are None unless the
    minimum is interior. The parabola's loss has a t-interval; other intervals hold 95 % of the interior
    draws. They are None, with the reason, if there are too few of these, if no cell was repeated, or
    for a surface."""

    scheme: str
    budget: float
    fit: str
    depth: int | None = None  #: layers, in a sweep of several depths
    best: bool = False  #: the lowest optimum over the depths
    minimum: MinimumVerdict
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    active_parameters: float | None = None
    active_parameters_low: float | None = None
    active_parameters_high: float | None = None
    train_tokens: float | None = None
    curvature: float | None = None  #: of the parabola: loss + curvature * log(size / best size)**2
    interior_share: float | None = None  #: of the draws
    interval_missing_because: str | None = None
    #: Of the best of several depths: the interval of the loss with what the choice of a depth hides, the
    #: share of the draws that choose this one, and those with an interior optimum and an interval.
    best_loss_low: float | None = None
    best_loss_high: float | None = None
    depth_share: float | None = None
    depths_compared: str | None = None
    #: (S,), NaN where a draw isn't interior; those of the lowest depth where one was chosen; empty
    #: without an interval
    drawn_losses: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    around: Spread | None = None  #: scatter of the points of the curve around its parabola
    spread: Spread | None = None  #: of one run: the noise between seeds, or the scatter of a misfit
    factor: float = 0.0  #: variance of the parabola's lowest loss, over that of one run
    seed_weights: Mapping[int, float] = field(default_factory=dict)  #: of the shift of each seed in it
    misfit: bool = False  #: the parabola misses the curves of this depth and budget

    @property
    def place(self) -> Place:
        return self.scheme, self.depth

    def row(self) -> dict[str, Any]:
        """The columns `modbench.analysis.frames.FIT_COLUMNS`, and further fields."""
        return vars(self) | {
            "noise_used": self.spread and self.spread.sd,
            "noise_used_freedom": self.spread and self.spread.freedom,
            "scatter": self.around and self.around.sd,
            "scatter_freedom": self.around and self.around.freedom,
        }


@dataclass(frozen=True)
class Misfit:
    """The scatter of one run around the parabolas of one depth and budget, all schemes together, and the
    F test's p-value that it is as large as the noise between seeds; None: the noise is not known."""

    scatter: float
    degrees_of_freedom: int
    p: float | None
    misfit: bool  #: the p is below `LEVEL`, so the scatter takes the place of the noise


@dataclass(frozen=True)
class IsoFlop:
    """The analysis of a sweep. Keys of ``optima``: scheme, budget, fit and depth; without a depth, the
    best one."""

    noise: Noise
    misfits: Mapping[tuple[int | None, float], Misfit]  #: by depth and budget
    surfaces: Mapping[Place, Surface]
    optima: Mapping[tuple[str, float, str, int | None], Optimum]

    def optimum(
        self, scheme: str, budget: float, fit: str = HEADLINE, depth: int | None = None
    ) -> Optimum:
        """Return the optimum of ``scheme`` at ``depth`` layers, or at its best depth. Raises KeyError:
        there is no such curve."""
        return self.optima[scheme, budget, fit, depth]

    def best(self, fit: str = HEADLINE) -> list[Optimum]:
        """The optima of all schemes and budgets at their best depths."""
        return [at for key, at in self.optima.items() if key[2:] == (fit, None)]


def quantiles(values: Array) -> Interval:
    """The central interval that holds 95 % of ``values``."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def widening(values: Array, estimate: float) -> Interval:
    """By how much both ends of an interval move outwards, of an ``estimate`` that is the lowest of
    several, or the difference of two such ones, from draws ``values`` that chose again. Their mean lies
    beyond the estimate by a part of what the estimate lies beyond the truth; the interval is widened on
    the other side."""
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
    noise, cells = measure_noise(runs), by_cell(runs)
    rows: dict[tuple[str, int | None, float], list[Cell]] = defaultdict(list)
    for cell in cells:
        rows[cell.scheme, cell.depth, cell.budget].append(cell)
    curves = {key: _Curve(row, cells) for key, row in rows.items()}
    misfits = _misfits(curves, noise)
    draws = draws or (DRAWS_OF_DEPTHS if len({depth for _, depth, _ in curves}) > 1 else DRAWS)

    def spread_of(scheme: str, depth: int | None, budget: float) -> Spread | None:
        of = misfits.get((depth, budget))
        return Spread(of.scatter, of.degrees_of_freedom) if of and of.misfit else noise.of(scheme)

    def of_cell(cell: Cell) -> Spread | None:
        return spread_of(cell.scheme, cell.depth, cell.budget)

    drawn = draw_losses(runs, of_cell, noise.shift, draws, seed)
    surfaces: dict[Place, Surface] = {}
    for place in dict.fromkeys(key[:2] for key in curves) if "surface" in fits else ():
        surface = _surface([curve for key, curve in curves.items() if key[:2] == place])
        surfaces |= {place: surface} if surface else {}
    optima = {}
    for (scheme, depth, budget), curve in curves.items():
        noisy = np.stack([drawn[cell] for cell in curve.row], axis=1)
        spread, misfit = spread_of(scheme, depth, budget), misfits.get((depth, budget))
        for fit in fits:
            # Nothing but an interval of the size depends on the draws of the other fits.
            some = noisy if fit == HEADLINE else noisy[:DRAWS]
            optima[scheme, budget, fit, depth] = Optimum(
                scheme=scheme,
                budget=budget,
                fit=fit,
                depth=depth,
                around=curve.scatter,
                spread=spread,
                misfit=misfit is not None and misfit.misfit,
                **curve.optimum(fit, some, spread, noise.shift, surfaces.get((scheme, depth))),
            )
    groups = groupby(sorted(optima.values(), key=_scheme_budget_fit), _scheme_budget_fit)
    for key, group in groups:
        best = _best_depth([*group])
        optima |= {(*key, best.depth): best, (*key, None): best}
    return IsoFlop(noise, misfits, surfaces, optima)


def _scheme_budget_fit(at: Optimum) -> tuple[str, float, str]:
    return at.scheme, at.budget, at.fit


class _Curve:
    """The means of the cells ``row`` of one scheme, depth and budget, in ascending order of size."""

    def __init__(self, row: list[Cell], cells: Mapping[Cell, Mapping[int, Run]]) -> None:
        self.runs = runs = [[*cells[cell].values()] for cell in row]
        self.row = row
        self.sizes = np.array([cell.size for cell in row])
        self.tokens = np.array([np.mean([run.tokens for run in of]) for of in runs])
        self.losses = np.array([np.mean([run.loss for run in of]) for of in runs])
        self.seeds = np.array([len(of) for of in runs])
        self.scatter = scatter(self.sizes, self.losses, self.seeds)

    def optimum(
        self, fit: str, noisy: Array, spread: Spread | None, shift: Spread, surface: Surface | None
    ) -> dict[str, Any]:
        """The fields of the optimum by ``fit``. ``noisy`` (S, P): draws of the losses; ``spread``: of
        one run; ``shift``: that the runs of a seed share."""
        point = self._along(surface) if fit == "surface" else CURVE_FITS[fit](self.sizes, self.losses)
        if not point.interior[0]:
            return {"minimum": VERDICTS[int(point.verdicts[0])]}
        size, loss = float(point.sizes[0]), float(point.losses[0])
        at: dict[str, Any] = {"minimum": "interior", "active_parameters": size, "loss": loss}
        at |= {"train_tokens": float(np.exp(self._log_tokens(np.log(size))))}
        at |= {} if point.curvatures is None else {"curvature": float(point.curvatures[0])}
        if spread is None or fit == "surface":
            return at | {"interval_missing_because": "a surface has none" if spread else _ONE_SEED}
        drawn = CURVE_FITS[fit](self.sizes, noisy)
        share = at["interior_share"] = float(drawn.interior.mean())
        if share < LEAST_INTERIOR:
            because = f"only {share:.0%} of the draws have an interior optimum"
            return at | {"interval_missing_because": because}
        interval = quantiles(drawn.losses[drawn.interior])
        if fit == HEADLINE:
            weights = minimum_weights(self.sizes, size)
            seed_weights: dict[int, float] = defaultdict(float)
            for weight, runs in zip(weights, self.runs, strict=True):
                for run in runs:
                    seed_weights[run.seed] += float(weight) / len(runs)
            factor = float((weights**2 / self.seeds).sum())
            parts = [(spread, factor), (shift, square_sum(seed_weights))]
            interval = of_parts(loss, parts).interval or interval
            at |= {"factor": factor, "seed_weights": dict(seed_weights)}
        at["loss_low"], at["loss_high"] = interval
        sizes = quantiles(drawn.sizes[drawn.interior])
        at["active_parameters_low"], at["active_parameters_high"] = sizes
        return at | {"drawn_losses": drawn.losses}

    def _log_tokens(self, log_sizes: Array | float) -> Array:
        return np.asarray(PchipInterpolator(np.log(self.sizes), np.log(self.tokens))(log_sizes))

    def _along(self, surface: Surface | None) -> Minima:
        """The minimum of ``surface`` along the curve, if the parabola has one."""
        shape = CURVE_FITS[HEADLINE](self.sizes, self.losses)
        if not shape.interior[0]:
            return shape
        if surface is None:
            return nothing("too-few", 1)
        log_sizes = np.linspace(np.log(self.sizes[0]), np.log(self.sizes[-1]), 801)
        losses = surface.loss(np.exp(log_sizes), np.exp(self._log_tokens(log_sizes)))
        best = int(losses.argmin())
        verdict = {0: 1, len(losses) - 1: 2}.get(best, 0)
        return minima(np.array([verdict]), log_sizes[[best]], losses[[best]])


def square_sum(weights: Mapping[int, float]) -> float:
    """The sum of the squares of ``weights`` by seed."""
    return math.fsum(weight**2 for weight in weights.values())


def _misfits(
    curves: Mapping[tuple[str, int | None, float], _Curve], noise: Noise
) -> dict[tuple[int | None, float], Misfit]:
    """The scatter around all parabolas of each depth and budget, and its test against the noise."""
    scatters: dict[tuple[int | None, float], list[Spread]] = defaultdict(list)
    for (_, depth, budget), curve in curves.items():
        scatters[depth, budget] += [curve.scatter] if curve.scatter else []
    misfits = {}
    for place, of_schemes in scatters.items():
        p = None
        if (around := pooled(of_schemes)) is None:
            continue
        if noise.pooled is not None and noise.pooled.sd > 0:
            ratio = (around.sd / noise.pooled.sd) ** 2
            p = float(fdtrc(around.freedom, noise.pooled.freedom, ratio))
        misfits[place] = Misfit(around.sd, around.freedom, p, p is not None and p < LEVEL)
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


def _best_depth(group: Sequence[Optimum]) -> Optimum:
    """The lowest of the interior optima of several depths; without any, the first of ``group``."""
    interior = [optimum for optimum in group if optimum.loss is not None]
    if not interior:
        return group[0]
    best = replace(min(interior, key=lambda optimum: optimum.loss or 0.0), best=True)
    usable = [optimum for optimum in interior if not optimum.interval_missing_because]
    if len(usable) < 2 or best.interval_missing_because:
        return best
    drawn = np.stack([np.where(np.isnan(at.drawn_losses), np.inf, at.drawn_losses) for at in usable])
    lowest = drawn.min(axis=0)
    chosen = np.isfinite(lowest)
    best_draws = np.isfinite(best.drawn_losses) & (best.drawn_losses == lowest)
    low, high = quantiles(lowest[chosen])
    down, up = widening(lowest[chosen], best.loss or 0.0)
    return replace(
        best,
        best_loss_low=low - down,
        best_loss_high=high + up,
        drawn_losses=np.where(chosen, lowest, np.nan),
        depth_share=float(best_draws.sum() / chosen.sum()),
        depths_compared=" ".join(str(optimum.depth) for optimum in usable),
    )
