"""Differences between two schemes: interval, p-values, and verdicts that are adjusted for the number of
comparisons. Intervals and p-values are those of Student's t with the degrees of freedom of the noise;
draws serve only where a choice, such as that of the depth, must be repeated. Shapes: S draws of noise.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from modbench.analysis.noise import ROUNDING, Array, Noise, Run, Spread, measure_noise

#: Largest difference in nats per token that counts as none, unless a suite states another.
MARGIN = 0.01
#: Probability of a wrong verdict in a family of comparisons.
LEVEL = 0.05
Interval = tuple[float, float]
Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A number of one scheme minus that of another, such as loss in nats per token.

    Interval and p-values are those of one comparison and None if the noise is not known or is rounding;
    `judge` adds what depends on the other comparisons of the family."""

    value: float
    interval: Interval | None = None  #: 95 %
    p: float | None = None  #: two-sided, of no difference
    p_equivalent: float | None = None  #: of a difference as large as the margin, on either side
    freedom: float | None = None  #: degrees of freedom of the t; None: by draws, or no interval
    pairs: int | None = None  #: pairs of runs, or of cells, that the mean is over
    untold: str = ""  #: why the data allow no verdict, such as `FEW_SEEDS`; empty if they allow one
    p_adjusted: float | None = None
    verdict: Verdict | None = None


#: Reasons to give no verdict.
FEW_SEEDS, INTERIM, MISFIT = "few seeds", "interim", "misfit"
#: Either allows a verdict: this many seeds a row, or this many degrees of freedom of the pooled noise.
LEAST_SEEDS, ENOUGH_FREEDOM = 3, 8


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm 1979): among those at or below 0.05, a wrong
    rejection has a probability of 5 % at most, whatever the tests depend on."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for number, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - number) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def judge(
    family: Sequence[Difference], better: Literal["lower", "higher"] = "lower"
) -> list[Difference]:
    """Return the differences of a family with adjusted p and verdict: *better* or *worse* if the
    adjusted p is 0.05 or less; *equivalent* if the adjusted p of two one-sided tests is, which then is
    ``p_adjusted``; otherwise *undecided*. One that is ``untold`` counts and has no verdict. One without
    p is no test: it stays as it is and does not count."""
    tested = [index for index, difference in enumerate(family) if difference.p is not None]
    adjusted = dict(zip(tested, holm([family[index].p or 0.0 for index in tested]), strict=True))
    margins = [index for index in tested if family[index].p_equivalent is not None]
    equivalent = holm([family[index].p_equivalent or 0.0 for index in margins])
    within = {index: p for index, p in zip(margins, equivalent, strict=True) if p <= LEVEL}
    judged = list(family)
    for index, p in adjusted.items():
        verdict: Verdict | None = "equivalent" if index in within else "undecided"
        if family[index].untold:
            verdict = None
        elif p <= LEVEL:
            verdict = "better" if (family[index].value < 0) == (better == "lower") else "worse"
        elif index in within:
            p = within[index]
        judged[index] = replace(family[index], p_adjusted=p, verdict=verdict)
    return judged


def compare(
    row_a: Mapping[int, float],
    row_b: Mapping[int, float],
    spreads: tuple[Spread | None, Spread | None],
    pooled: Spread | None = None,
    margin: float | None = MARGIN,
) -> Difference | None:
    """Mean of ``row_a`` minus ``row_b``, figures by seed, over the seeds of both; None if they share
    none. ``spreads``: noise of one run of either row (`Noise.of`); ``pooled``: that of all rows, if it
    is theirs: its degrees of freedom allow a verdict of fewer than `LEAST_SEEDS` seeds."""
    seeds = sorted(row_a.keys() & row_b.keys())
    if not seeds:
        return None
    mean = math.fsum(row_a[seed] - row_b[seed] for seed in seeds) / len(seeds)
    ours, theirs = spreads
    if ours is None or theirs is None:
        return Difference(value=mean, pairs=len(seeds))
    parts = [(ours, 1 / len(seeds)), (theirs, 1 / len(seeds))]
    is_few = len(seeds) < LEAST_SEEDS and (pooled is None or pooled.freedom < ENOUGH_FREEDOM)
    told = of_parts(mean, parts, margin)
    return replace(told, pairs=len(seeds), untold=FEW_SEEDS if is_few else "")


def mean_difference(cells: Sequence[float], margin: float | None = MARGIN) -> Difference:
    """Mean of the differences of two or more cells, such as one for each shape and budget, with the
    t-interval of independent cells."""
    mean = math.fsum(cells) / len(cells)
    squares = math.fsum((value - mean) ** 2 for value in cells)
    if math.sqrt(squares) <= ROUNDING * max(map(abs, cells)):
        return Difference(value=mean, pairs=len(cells))
    spread = Spread(math.sqrt(squares / (len(cells) - 1)), len(cells) - 1)
    return replace(of_parts(mean, [(spread, 1 / len(cells))], margin), pairs=len(cells))


def line_at_zero(
    away: Sequence[float], cells: Sequence[float], seeds: Sequence[int]
) -> tuple[float, Difference] | None:
    """The least-squares line of the differences ``cells``, means over ``seeds`` pairs of runs each, over
    ``away``: its slope, and its value at 0 with the t-interval of independent pairs; None for fewer than
    three places."""
    if len({*away}) < 3:
        return None
    x, y, weights = np.array(away), np.array(cells), np.array(seeds, float)
    total = float(weights.sum())
    middle, mean = float((weights * x).sum()) / total, float((weights * y).sum()) / total
    square = float((weights * (x - middle) ** 2).sum())
    slope = float((weights * (x - middle) * y).sum()) / square
    rest = y - mean - slope * (x - middle)
    rounding = ROUNDING * float(np.abs(y).max())
    if abs(slope) * float(np.ptp(x)) <= rounding:
        slope = 0.0
    if math.sqrt(float((rest**2).sum())) <= rounding:
        return slope, Difference(value=mean - slope * middle, pairs=len(x))
    spread = Spread(math.sqrt(float((weights * rest**2).sum()) / (len(x) - 2)), len(x) - 2)
    minus = of_parts(mean - slope * middle, [(spread, 1 / total + middle**2 / square)], None)
    return slope, replace(minus, pairs=len(x))


def row_noise(rows: Mapping[str, Mapping[int, float]]) -> Noise:
    """The noise of one run of each of ``rows``, figures by seed."""
    return measure_noise(
        Run(scheme=name, budget=0.0, size=0.0, tokens=0.0, loss=figure, seed=seed)
        for name, row in rows.items()
        for seed, figure in row.items()
    )


def of_parts(
    value: float, parts: Iterable[tuple[Spread, float]], margin: float | None = MARGIN
) -> Difference:
    """The difference ``value``, whose variance is the sum over ``parts``: the variance of one run times
    a factor. Parts of one estimate have its degrees of freedom; several estimates have those of Welch
    and Satterthwaite."""
    factors: dict[Spread, float] = defaultdict(float)
    for spread, factor in parts:
        factors[spread] += factor if factor > 1e-12 else 0.0  # what cancels but for rounding
    variances = {spread: factor * spread.sd**2 for spread, factor in factors.items()}
    variance = math.fsum(variances.values())
    error = math.sqrt(variance)
    if error == 0:  # the runs differ by rounding alone: there is no noise to test with
        return Difference(value=value)
    freedom = variance**2 / math.fsum(of**2 / spread.freedom for spread, of in variances.items())
    half = error * float(stdtrit(freedom, 0.975))

    def tail(distance: float) -> float:
        """Probability of a t-value above ``distance`` over the standard error."""
        return float(stdtr(freedom, -distance / error))

    return Difference(
        value=value,
        interval=(value - half, value + half),
        p=min(1.0, 2 * tail(abs(value))),
        p_equivalent=None if margin is None else tail(margin - abs(value)),
        freedom=freedom,
    )


def drawn_difference(value: float, low: Array, high: Array, margin: float | None = MARGIN) -> Difference:
    """A difference of two optima from finite draws (S,) of it. ``low`` and ``high`` are the same draws;
    where the interval is widened, ``low`` is shifted down and ``high`` up.

    Two-sided p: twice the share of draws on the other side of 0, counted with one draw more, so that S
    draws give 2 / (S + 1) at least. The test of equivalence counts draws beyond the margin likewise."""
    ends = float(np.quantile(low, 0.025)), float(np.quantile(high, 0.975))

    def beyond(bound: float) -> tuple[float, float]:
        below, above = int((low <= -bound).sum()), int((high >= bound).sum())
        return (below + 1) / (len(low) + 1), (above + 1) / (len(low) + 1)

    return Difference(
        value=value,
        interval=ends,
        p=min(1.0, 2 * min(beyond(0.0))),
        p_equivalent=None if margin is None else max(beyond(margin)),
    )
