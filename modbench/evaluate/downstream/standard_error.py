"""Standard errors of metrics that lm-eval aggregates without one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def standard_error(values: Sequence[Any], aggregate: float) -> float | None:
    """Return the standard error of ``aggregate``, computed from one value per item; None for fewer than
    two items or another kind of metric.

    Three kinds are told apart by what gives ``aggregate`` back: the mean; with pairs (log-likelihood,
    weight), such as words or bytes, the perplexity exp(-sum l / sum w), or its log2. The last two are
    ratios of sums, whose error is linearised.
    """
    if len(values) < 2:
        return None
    if all(isinstance(value, int | float | np.number) for value in values):
        values_N = np.asarray(values, dtype=np.float64)
        if not np.isclose(values_N.mean(), aggregate, rtol=1e-6, atol=1e-12):
            return None
        return float(values_N.std(ddof=1) / math.sqrt(len(values_N)))
    if not all(isinstance(value, tuple | list) and len(value) == 2 for value in values):
        return None
    logs_N, weights_N = np.asarray(values, dtype=np.float64).T
    nats = -logs_N.sum() / weights_N.sum()
    residuals_N = -logs_N - nats * weights_N
    error = math.sqrt((residuals_N**2).sum() * len(values) / (len(values) - 1)) / weights_N.sum()
    if np.isclose(math.exp(min(nats, 700)), aggregate, rtol=1e-6):
        return float(aggregate * error)
    return float(error / math.log(2)) if np.isclose(nats / math.log(2), aggregate, rtol=1e-6) else None
