"""Comparisons of schemes at their optima of equal training FLOPs: loss differences and speed-ups."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modbench.analysis.difference import MARGIN, Difference, Interval, drawn_difference, judge
from modbench.analysis.isoflop import LEAST_INTERIOR, IsoFlop, widening
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
    fit: str,
    margin: float = MARGIN,
    depth: int | None = None,
) -> Difference | None:
    """Compare two schemes at their optima of ``budget``, each at ``depth`` layers or at its best depth;
    None if either lacks an optimum or an interval there. Draws share the shift of each seed, so the
    comparison is paired where both ran with the same seeds."""
    ours, theirs = (isoflop.optimum(name, budget, fit, depth) for name in (scheme, reference))
    if ours.loss is None or theirs.loss is None or ours.void or theirs.void:
        return None
    drawn = ours.drawn_losses - theirs.drawn_losses
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < LEAST_INTERIOR * len(ours.drawn_losses):
        return None
    nats = ours.loss - theirs.loss
    low, high = (0.0, 0.0) if not (ours.depths or theirs.depths) else widening(drawn, nats)
    return drawn_difference(nats, drawn - low, drawn + high, margin)


#: Budget, scheme, reference, and the depth of both; None: each at its best depth.
Compared = tuple[float, str, str, int | None]


def family(
    isoflop: IsoFlop, pairs: Iterable[Compared], fit: str, margin: float = MARGIN
) -> dict[Compared, Difference]:
    """The differences of a family of ``pairs``, with verdicts adjusted for their number; without those
    pairs that can't be compared."""
    known = {(at.budget, at.scheme, at.depth) for at in isoflop.by_depth if at.fit == fit}
    known |= {(at.budget, at.scheme, None) for at in isoflop.optima if at.fit == fit}
    compared = {
        (budget, scheme, reference, depth): difference(
            isoflop, scheme, reference, budget, fit, margin, depth
        )
        for budget, scheme, reference, depth in pairs
        if {(budget, scheme, depth), (budget, reference, depth)} <= known
    }
    tested = {pair: minus for pair, minus in compared.items() if minus is not None}
    return dict(zip(tested, judge([*tested.values()]), strict=True))


def speed_up(isoflop: IsoFlop, scheme: str, reference: str, budget: float, fit: str) -> SpeedUp | None:
    """Effective speed-up at equal loss: the budget at which the reference's optimum reaches the loss of
    the scheme's optimum, over ``budget``. Losses between the reference's budgets are interpolated
    monotonically (PCHIP) in log FLOPs and never extrapolated. None where an optimum is
    missing."""
    ours = isoflop.optimum(scheme, budget, fit)
    optima = [at for at in isoflop.optima if (at.scheme, at.fit) == (reference, fit)]
    theirs = sorted((at for at in optima if at.loss is not None), key=lambda at: at.budget)
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
    if not ours.void and not any(at.void for at in theirs):
        losses = np.stack([at.drawn_losses for at in theirs], axis=1)
        drawn = _needed(budgets, losses, ours.drawn_losses) / budget
        drawn = np.sort(drawn[~np.isnan(drawn)])
        if len(drawn) >= LEAST_INTERIOR * len(losses):
            ends = drawn[[int(0.025 * len(drawn)), min(len(drawn) - 1, int(0.975 * len(drawn)))]]
            interval = float(ends[0]), float(ends[1])
    return SpeedUp(factor=float(factor), bound=bound, interval=interval)


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
