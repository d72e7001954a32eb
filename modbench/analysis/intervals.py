"""How far samples spread, and whether their median may be trusted. Standard library only."""

import statistics
from collections.abc import Sequence
from typing import Any


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, interquartile range and n of three or more values. ``stable`` as pyperf judges: standard
    deviation within 10 % of the mean, extremes within 50 % of it."""
    mean = statistics.fmean(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    stable = (
        statistics.stdev(values) <= 0.1 * mean
        and min(values) >= 0.5 * mean
        and max(values) <= 1.5 * mean
    )
    return {
        "median": statistics.median(values),
        "iqr": high - low,
        "n": len(values),
        "stable": stable,
    }
