"""Minimum of one isoFLOP curve: loss against log size at a fixed training budget.

Two fits: a parabola in log size (Hoffmann et al. 2022, approach 2) and Akima interpolation (Porian et
al. 2024). The parabola is biased if the true curve is asymmetric (Czech et al. 2026). Akima
interpolation is less so, and noisier.

Shapes: P sizes in ascending order, S draws of noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from modbench.analysis.noise import ROUNDING, Array, Spread

#: The kinds of curve. Only an interior one has an optimum: at an edge the loss still falls at the
#: smallest or largest size, an open-down one is concave, and too few means fewer than three sizes.
MinimumVerdict = Literal["interior", "edge-low", "edge-high", "open-down", "too-few"]
VERDICTS: tuple[MinimumVerdict, ...] = ("interior", "edge-low", "edge-high", "open-down", "too-few")
LEAST_SIZES = 3


@dataclass(frozen=True)
class Minima:
    """One minimum for each of S curves. ``verdicts`` (S,) indexes `VERDICTS`; ``sizes`` and ``losses``
    (S,) are NaN where the verdict isn't interior. ``curvatures`` (S,): of parabolas, whose loss at a
    size is ``lowest + curvature * log(size / best size)**2``."""

    verdicts: NDArray[np.int64]
    sizes: Array
    losses: Array
    curvatures: Array | None = None

    @property
    def interior(self) -> NDArray[np.bool_]:
        return np.asarray(self.verdicts == 0)


def parabola(sizes: Any, losses: Any) -> Minima:
    """Minimum of the least-squares parabola in log size. ``sizes`` (P,), ``losses`` (S, P)."""
    x, y = _checked(sizes, losses)
    if len(x) < LEAST_SIZES:
        return nothing("too-few", len(y))
    middle = x.mean()
    square, slope, constant = np.linalg.pinv(_terms(x, middle)) @ y.T
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = middle - slope / (2 * square)
        lowest = constant - slope**2 / (4 * square)
    flat = np.abs(square) <= 1e-12 * np.abs(constant)
    verdicts = np.select([flat | (square < 0), vertex <= x[0], vertex >= x[-1]], [3, 1, 2], 0)
    return minima(verdicts, vertex, lowest, square)


def _terms(log_sizes: Any, middle: float) -> Array:
    """The square, linear and constant term of a parabola at ``log_sizes``, on the last axis."""
    away = np.asarray(log_sizes - middle)
    return np.stack([away**2, away, np.ones_like(away)], axis=-1)


def minimum_weights(sizes: Any, size: float) -> Array:
    """Weights (P,) of the losses at ``sizes`` (P,) in the parabola's loss at ``size``. At its minimum
    they are the derivatives of the lowest loss, too: there, a shift of the minimum changes nothing
    (delta method)."""
    x = np.log(np.asarray(sizes, float))
    return np.asarray(_terms(np.log(size), x.mean()) @ np.linalg.pinv(_terms(x, x.mean())))


def scatter(sizes: Any, losses: Any, seeds: Any) -> Spread | None:
    """Standard deviation of the points of one curve around its least-squares parabola, with P - 3
    degrees of freedom; None for three points. ``sizes`` (P,), ``losses`` (P,): means over ``seeds`` (P,)
    runs each, so that the distances are scaled to those of one run. It contains the noise between
    seeds, and what a parabola misses of the curve."""
    x, (y,) = _checked(sizes, losses)
    freedom = len(x) - LEAST_SIZES
    if freedom < 1:
        return None
    terms = _terms(x, x.mean())
    rest = y - terms @ (np.linalg.pinv(terms) @ y)
    rest[np.abs(rest) <= ROUNDING * np.abs(y).max()] = 0.0
    return Spread(float(np.sqrt((np.asarray(seeds) * rest**2).sum() / freedom)), freedom)


def akima(sizes: Any, losses: Any) -> Minima:
    """Minimum of the Akima interpolation in log size. ``sizes`` (P,), ``losses`` (S, P)."""
    x, y = _checked(sizes, losses)
    if len(x) < LEAST_SIZES:
        return nothing("too-few", len(y))
    cubic = Akima1DInterpolator(x, y.T)
    c3, c2, c1, c0 = cubic.c  # each (P - 1, S)
    width = np.diff(x)[:, None]
    # Candidates in each segment: its start, and the minimum of its cubic if that lies inside.
    with np.errstate(divide="ignore", invalid="ignore"):
        root = (-c2 + np.sqrt(c2**2 - 3 * c3 * c1)) / (3 * c3)
        root = np.where(np.abs(c3) < 1e-15, -c1 / (2 * c2), root)
    inside = (root > 0) & (root < width)
    offset = np.where(inside, root, 0.0)
    values = ((c3 * offset + c2) * offset + c1) * offset + c0
    values = np.concatenate([c0, values, y.T[-1:]])
    positions = np.concatenate([np.broadcast_to(x[:-1, None], c0.shape), x[:-1, None] + offset])
    positions = np.concatenate([positions, np.full((1, len(y)), x[-1])])
    best = values.argmin(axis=0)
    at = np.take_along_axis(positions, best[None], axis=0)[0]
    lowest = np.take_along_axis(values, best[None], axis=0)[0]
    ends_higher = np.where(at <= x[0], 1, np.where(at >= x[-1], 2, 0))
    concave = (ends_higher > 0) & (y[:, 1:-1].min(axis=1) >= np.maximum(y[:, 0], y[:, -1]))
    return minima(np.where(concave, 3, ends_higher), at, lowest)


#: The fits by name, in the order of their columns.
CURVE_FITS: dict[str, Callable[[Any, Any], Minima]] = {"parabola": parabola, "akima": akima}


def _checked(sizes: Any, losses: Any) -> tuple[Array, Array]:
    x, y = np.log(np.asarray(sizes, float)), np.atleast_2d(np.asarray(losses, float))
    if (np.diff(x) <= 0).any():
        raise ValueError("sizes must ascend and differ")
    return x, y


def nothing(verdict: MinimumVerdict, rows: int) -> Minima:
    """``rows`` curves without a minimum, because of ``verdict``."""
    unknown = np.full(rows, np.nan)
    return minima(np.full(rows, VERDICTS.index(verdict)), unknown, unknown)


def minima(verdicts: Any, log_sizes: Array, losses: Array, curvatures: Array | None = None) -> Minima:
    """`Minima` at ``log_sizes`` where the verdict is interior; all three have shape (S,)."""
    inside = verdicts == 0
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = np.exp(np.where(inside, log_sizes, np.nan))
    return Minima(np.asarray(verdicts), sizes, np.where(inside, losses, np.nan), curvatures)
