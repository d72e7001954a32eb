"""Comparisons of schemes at equal training FLOPs: loss differences, speed-ups, ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import stdtrit

from modbench.analysis.isoflop import LEAST_INTERIOR, Interval, IsoFlop, quantiles, widened
from modbench.analysis.noise import Array

#: Largest difference in nats per token that counts as none, unless a suite states another.
MARGIN = 0.01


Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Loss of a scheme minus that of another one, in nats per token.

    ``verdict``: better or worse if the 95 % interval excludes 0; equivalent if it doesn't and the 90 %
    interval lies within +-``margin`` (two one-sided tests at 5 %); otherwise undecided."""

    nats: float
    interval: Interval
    margin: float
    verdict: Verdict


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
    if ours.depths or theirs.depths:
        return _judged(nats, widened(drawn, nats), widened(drawn, nats, 0.9), margin)
    return _judged(nats, quantiles(drawn), quantiles(drawn, 0.9), margin)


def mean_difference(differences: Sequence[float], margin: float = MARGIN) -> Difference:
    """Mean of two or more loss differences between runs that differ in their scheme only, with the
    t-interval of independent pairs."""
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / np.sqrt(len(differences))
    wide, narrow = (error * float(stdtrit(len(differences) - 1, level)) for level in (0.975, 0.95))
    return _judged(mean, (mean - wide, mean + wide), (mean - narrow, mean + narrow), margin)


def _judged(nats: float, interval: Interval, narrow: Interval, margin: float) -> Difference:
    """The difference with its verdict; ``interval`` holds 95 %, ``narrow`` 90 %."""
    verdict: Verdict = "undecided"
    if interval[1] < 0:
        verdict = "better"
    elif interval[0] > 0:
        verdict = "worse"
    elif -margin <= narrow[0] and narrow[1] <= margin:
        verdict = "equivalent"
    return Difference(nats=nats, interval=interval, margin=margin, verdict=verdict)


def speed_up(isoflop: IsoFlop, scheme: str, reference: str, budget: float, fit: str) -> SpeedUp | None:
    """Effective speed-up at equal loss: the budget at which the reference's optimum reaches the loss of
    the scheme's optimum, over ``budget``. Losses between the reference's budgets are interpolated
    monotonically (PCHIP) in log FLOPs and never extrapolated. None where an optimum is missing."""
    ours = isoflop.optimum(scheme, budget, fit)
    theirs = [one for one in isoflop.optima if (one.scheme, one.fit) == (reference, fit)]
    theirs = sorted((one for one in theirs if one.loss is not None), key=lambda one: one.budget)
    if ours.loss is None or len(theirs) < 2:
        return None
    budgets = np.array([one.budget for one in theirs])
    losses = np.array([one.loss for one in theirs])
    factor = _needed(budgets, losses, ours.loss) / budget
    bound: Literal["", "at least", "at most"] = ""
    if np.isinf(factor):
        factor, bound = budgets[-1] / budget, "at least"
    elif factor == 0:
        factor, bound = budgets[0] / budget, "at most"
    elif np.isnan(factor):
        return None
    interval: Interval | None = None
    if not ours.void and not any(one.void for one in theirs):
        drawn = np.array(
            [
                _needed(budgets, row, loss) / budget
                for row, loss in zip(
                    np.stack([one.drawn_losses for one in theirs], axis=1),
                    ours.drawn_losses,
                    strict=True,
                )
            ]
        )
        drawn = np.sort(drawn[~np.isnan(drawn)])
        if len(drawn) >= LEAST_INTERIOR * len(ours.drawn_losses):
            ends = drawn[[int(0.025 * len(drawn)), min(len(drawn) - 1, int(0.975 * len(drawn)))]]
            interval = float(ends[0]), float(ends[1])
    return SpeedUp(factor=float(factor), bound=bound, interval=interval)


def _needed(budgets: Array, losses: Array, loss: float) -> float:
    """The budget at which ``losses`` reach ``loss``: inf beyond the last, 0 before the first, NaN if the
    losses don't fall with the budget."""
    known = np.isfinite(losses)
    if known.sum() < 2 or not np.isfinite(loss) or (np.diff(losses[known]) >= 0).any():
        return float("nan")
    budgets, losses = budgets[known], losses[known]
    if loss < losses[-1]:
        return float("inf")
    if loss > losses[0]:
        return 0.0
    return float(np.exp(PchipInterpolator(losses[::-1], np.log(budgets[::-1]))(loss)))


def shared_ranks(intervals: Mapping[str, Interval]) -> dict[str, int]:
    """Ranks from 1, lower intervals first; schemes whose intervals overlap, directly or through others
    between them, share a rank."""
    ranks: dict[str, int] = {}
    reach = -np.inf
    rank = 0
    ordered: Sequence[tuple[str, Interval]] = sorted(intervals.items(), key=lambda item: item[1])
    for place, (scheme, (low, high)) in enumerate(ordered, start=1):
        if low > reach:
            rank = place
        ranks[scheme] = rank
        reach = max(reach, high)
    return ranks
