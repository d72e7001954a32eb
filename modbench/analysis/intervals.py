"""Spread of samples, and stability of their median."""

import statistics
from collections.abc import Sequence
from typing import Any


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, interquartile range and n of three or more values. ``stable`` follows pyperf: standard
    deviation within 10 % of the mean, minimum and maximum within 50 % of it."""
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
