"""Differences between two schemes: interval, p-values, and verdicts that are adjusted for the number of
comparisons. Shapes: S draws of noise."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from modbench.analysis.noise import LEAST_FREEDOM, Array, Run, Spread, measure_noise

#: Largest difference in nats per token that counts as none, unless a suite states another.
MARGIN = 0.01
#: Probability of a wrong verdict in a family of comparisons.
LEVEL = 0.05
Interval = tuple[float, float]
Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A figure of one scheme minus that of another, such as loss in nats per token.

    Interval and p-values are those of one comparison and None if the noise is not known; `judge` adds
    what depends on the other comparisons of the family."""

    value: float
    interval: Interval | None = None  #: 95 %
    p: float | None = None  #: two-sided, of no difference
    p_equivalent: float | None = None  #: of a difference as large as the margin, on either side
    pairs: int | None = None  #: pairs of runs, or of cells, that the mean is over
    p_adjusted: float | None = None
    verdict: Verdict | None = None


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
    adjusted p is 0.05 or less; *equivalent* if the adjusted p of two one-sided tests is; otherwise
    *undecided*. A difference without p is no test: it stays as it is and does not count."""
    tested = [index for index, difference in enumerate(family) if difference.p is not None]
    adjusted = dict(zip(tested, holm([family[index].p or 0.0 for index in tested]), strict=True))
    margins = [index for index in tested if family[index].p_equivalent is not None]
    equivalent = holm([family[index].p_equivalent or 0.0 for index in margins])
    within = {index for index, p in zip(margins, equivalent, strict=True) if p <= LEVEL}
    judged = list(family)
    for index, p in adjusted.items():
        verdict: Verdict = "equivalent" if index in within else "undecided"
        if p <= LEVEL:
            verdict = "better" if (family[index].value < 0) == (better == "lower") else "worse"
        judged[index] = replace(family[index], p_adjusted=p, verdict=verdict)
    return judged


def compare(
    row_a: Mapping[int, float],
    row_b: Mapping[int, float],
    pooled: Spread | None = None,
    margin: float | None = MARGIN,
) -> Difference | None:
    """Mean of ``row_a`` minus ``row_b``, figures by seed, over the seeds of both; None if they share
    none. The t-interval is that of the pairs if they have `LEAST_FREEDOM` degrees of freedom. With fewer
    seeds, the noise of a run is ``pooled`` (see `pooled_noise`), where there is any."""
    pairs = [row_a[seed] - row_b[seed] for seed in sorted(row_a.keys() & row_b.keys())]
    if not pairs:
        return None
    spread = _spread(pairs)
    if pooled is not None and len(pairs) - 1 < LEAST_FREEDOM:
        spread = Spread(math.sqrt(2) * pooled.sd, pooled.freedom)
    return _of_pairs(pairs, spread, margin)


def mean_difference(cells: Sequence[float], margin: float | None = MARGIN) -> Difference:
    """Mean of the differences of two or more cells, such as one for each shape and budget, with the
    t-interval of independent cells."""
    return _of_pairs(cells, _spread(cells), margin)


def pooled_noise(rows: Iterable[Mapping[int, float]]) -> Spread | None:
    """Standard deviation of one run between seeds, pooled over ``rows`` of figures by seed, without the
    shift that all rows of a seed share; None if no row has two seeds."""
    runs = (
        Run(scheme=str(number), budget=0.0, size=0.0, tokens=0.0, loss=figure, seed=seed)
        for number, row in enumerate(rows)
        for seed, figure in row.items()
    )
    return measure_noise(runs).pooled


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


def _spread(values: Sequence[float]) -> Spread | None:
    """Standard deviation of ``values`` between cells or seeds; None for one value."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(math.sqrt(squares / (len(values) - 1)), len(values) - 1)


def _of_pairs(pairs: Sequence[float], spread: Spread | None, margin: float | None) -> Difference:
    """The mean of ``pairs``, whose standard deviation is ``spread``."""
    mean = math.fsum(pairs) / len(pairs)
    if spread is None:
        return Difference(value=mean, pairs=len(pairs))
    error = spread.sd / math.sqrt(len(pairs))
    half = error * float(stdtrit(spread.freedom, 0.975))

    def tail(distance: float) -> float:
        """Probability of a t-value above ``distance`` over the standard error."""
        if error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(stdtr(spread.freedom, -distance / error))

    return Difference(
        value=mean,
        interval=(mean - half, mean + half),
        p=min(1.0, 2 * tail(abs(mean))),
        p_equivalent=None if margin is None else tail(margin - abs(mean)),
        pairs=len(pairs),
    )
