"""Comparisons of schemes at their optima of equal training FLOPs: loss differences and speed-ups."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from modbench.analysis.difference import (
    MARGIN,
    MISFIT,
    Difference,
    Interval,
    drawn_difference,
    of_parts,
)
from modbench.analysis.isoflop import (
    HEADLINE,
    LEAST_INTERIOR,
    IsoFlop,
    Optimum,
    square_sum,
    widening,
)
from modbench.analysis.noise import Array


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """FLOPs that the reference needs for the scheme's loss, over the scheme's budget.

    ``bound``: "at least" or "at most" if that loss lies outside what the reference reaches at its
    budgets; ``factor`` is then the largest or smallest factor that its budgets can show. Ends of the
    interval beyond the reference's budgets are 0 or inf. None: there is no interval."""

    factor: float
    bound: Literal["", "at least", "at most"]
    interval: Interval | None


def difference(
    isoflop: IsoFlop,
    scheme: str,
    reference: str,
    budget: float,
    margin: float | None = MARGIN,
    depth: int | None = None,
) -> Difference | None:
    """Compare two schemes at their optima of ``budget``, each at ``depth`` layers or at its best depth;
    None if either lacks one there, by the parabola. An interval needs those of both optima. It is a
    t-interval; where a scheme chose among several depths, it is by draws that choose again. A
    difference of curves that the parabola misses is `MISFIT` where another fit's lies outside of its
    interval."""
    ours, theirs = (isoflop.optima.get((name, budget, HEADLINE, depth)) for name in (scheme, reference))
    if ours is None or theirs is None or ours.loss is None or theirs.loss is None:
        return None
    value = ours.loss - theirs.loss
    if any(at.interval_missing_because for at in (ours, theirs)) or not (ours.spread and theirs.spread):
        return Difference(value=value)
    if depth is None and (ours.depths_compared or theirs.depths_compared):
        drawn = ours.drawn_losses - theirs.drawn_losses
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) < LEAST_INTERIOR * len(ours.drawn_losses):
            return Difference(value=value)
        low, high = widening(drawn, value)
        minus = drawn_difference(value, drawn - low, drawn + high, margin)
    else:
        seeds = ours.seed_weights.keys() | theirs.seed_weights.keys()
        away = {
            seed: ours.seed_weights.get(seed, 0.0) - theirs.seed_weights.get(seed, 0.0) for seed in seeds
        }
        parts = [(ours.spread, ours.factor), (theirs.spread, theirs.factor)]
        parts.append((isoflop.noise.shift, square_sum(away)))  # 0 with the same seeds
        minus = of_parts(value, parts, margin)
    is_missed = ours.misfit or theirs.misfit
    if is_missed and not _agree(isoflop, ours, theirs, minus.interval or (value, value)):
        return replace(minus, untold=MISFIT)
    return minus


def _agree(isoflop: IsoFlop, ours: Optimum, theirs: Optimum, interval: Interval) -> bool:
    """Return True if no other fit of the same curves gives a difference outside of ``interval``."""
    for fit in {optimum.fit for optimum in isoflop.optima.values()} - {HEADLINE}:
        optima = (isoflop.optimum(of.scheme, of.budget, fit, of.depth) for of in (ours, theirs))
        first, second = (optimum.loss for optimum in optima)
        known = first is not None and second is not None
        if known and not interval[0] <= (first or 0.0) - (second or 0.0) <= interval[1]:
            return False
    return True


def speed_up(
    isoflop: IsoFlop, scheme: str, reference: str, budget: float, fit: str = HEADLINE
) -> SpeedUp | None:
    """Effective speed-up at equal loss: the budget at which the reference's optimum reaches the loss of
    the scheme's optimum, over ``budget``. Losses between the reference's budgets are interpolated
    monotonically (PCHIP) in log FLOPs and never extrapolated. Where a depth was chosen, the interval is
    widened as that of the difference is. None where an optimum is missing."""
    ours = isoflop.optimum(scheme, budget, fit)
    optima = [at for at in isoflop.best(fit) if at.scheme == reference and at.loss is not None]
    theirs = sorted(optima, key=lambda at: at.budget)
    if ours.loss is None or len(theirs) < 2:
        return None
    budgets = np.array([at.budget for at in theirs])
    losses = np.array([[at.loss for at in theirs]], float)
    factor = float(_needed(budgets, losses, np.array([ours.loss]))[0]) / budget
    bound: Literal["", "at least", "at most"] = ""
    if np.isinf(factor):
        factor, bound = budgets[-1] / budget, "at least"
    elif factor == 0:
        factor, bound = budgets[0] / budget, "at most"
    elif np.isnan(factor):
        return None
    interval: Interval | None = None
    if not any(at.interval_missing_because for at in (ours, *theirs)) and fit == HEADLINE:
        losses = np.stack([at.drawn_losses for at in theirs], axis=1)
        down = up = 0.0
        if any(at.depths_compared for at in (ours, *theirs)):
            # Both are chosen as the lowest of several: the difference tells by how much to widen.
            same = [at for at in theirs if at.budget == budget]
            drawn = ours.drawn_losses - (same[0].drawn_losses if same else 0.0)
            value = ours.loss - ((same[0].loss or 0.0) if same else 0.0)
            down, up = widening(drawn[np.isfinite(drawn)], value)
        ends = [_end(_needed(budgets, losses, ours.drawn_losses + up) / budget, 0.025)]
        ends += [_end(_needed(budgets, losses, ours.drawn_losses - down) / budget, 0.975)]
        if ends[0] is not None and ends[1] is not None:
            interval = ends[0], ends[1]
    return SpeedUp(factor=float(factor), bound=bound, interval=interval)


def _end(drawn: Array, share: float) -> float | None:
    """The value below which ``share`` of the draws (S,) lie, NaN left out; None if too few are left."""
    known = np.sort(drawn[~np.isnan(drawn)])
    if len(known) < LEAST_INTERIOR * len(drawn):
        return None
    return float(known[min(len(known) - 1, int(share * len(known)))])


def _needed(budgets: Array, losses: Array, wanted: Array) -> Array:
    """The budgets (S,) at which rows of ``losses`` (S, budgets) reach the losses ``wanted`` (S,): inf
    beyond the last budget, 0 before the first, NaN if the losses of a row don't fall with the budget.
    A loss that is NaN is left out."""
    needed = np.full(len(losses), np.nan)
    known = np.isfinite(losses)
    for pattern in np.unique(known, axis=0):
        rows = np.flatnonzero((known == pattern).all(axis=1) & np.isfinite(wanted))
        if pattern.sum() < 2 or not len(rows):
            continue
        row_losses, at = losses[rows][:, pattern], budgets[pattern]
        falls = (np.diff(row_losses, axis=1) < 0).all(axis=1)
        row_losses, rows = row_losses[falls], rows[falls]
        loss = wanted[rows]
        inside = np.clip(loss, row_losses[:, -1], row_losses[:, 0])
        budget = np.exp(_monotone(row_losses[:, ::-1], np.log(at[::-1]), inside))
        beyond, before = loss < row_losses[:, -1], loss > row_losses[:, 0]
        needed[rows] = np.select([beyond, before], [np.inf, 0.0], budget)
    return needed


def _monotone(x: Array, y: Array, at: Array) -> Array:
    """Values at ``at`` (S,) of the monotone cubic interpolations (PCHIP, Fritsch and Butland 1984)
    through the points ``x`` (S, K), ascending, and ``y`` (K,), which ascend or descend: what scipy's
    PchipInterpolator gives row by row."""
    width = np.diff(x, axis=1)
    slope = np.diff(y) / width
    rows = np.arange(len(x))
    if slope.shape[1] == 1:
        return np.asarray(y[0] + slope[:, 0] * (at - x[:, 0]))

    def end(h0: Array, h1: Array, m0: Array, m1: Array) -> Array:
        three_points = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
        return np.where(three_points * m0 > 0, three_points, 0.0)

    before, after = 2 * width[:, 1:] + width[:, :-1], width[:, 1:] + 2 * width[:, :-1]
    inner = (before + after) / (before / slope[:, :-1] + after / slope[:, 1:])
    first = end(width[:, 0], width[:, 1], slope[:, 0], slope[:, 1])
    last = end(width[:, -1], width[:, -2], slope[:, -1], slope[:, -2])
    tangent = np.column_stack([first, inner, last])
    segment = np.clip((x <= at[:, None]).sum(axis=1) - 1, 0, slope.shape[1] - 1)
    step, rise = at - x[rows, segment], slope[rows, segment]
    left, right, span = tangent[rows, segment], tangent[rows, segment + 1], width[rows, segment]
    square = (3 * rise - 2 * left - right) / span
    cube = (left + right - 2 * rise) / span**2
    return np.asarray(y[segment] + step * (left + step * (square + step * cube)))
