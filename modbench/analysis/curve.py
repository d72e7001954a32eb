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

from modbench.analysis.noise import Array, Spread

#: The kinds of curve. Only an interior one has an optimum: at an edge the loss still falls at the
#: smallest or largest size, an open-down one is concave, and too few means fewer than three sizes.
Verdict = Literal["interior", "edge-low", "edge-high", "open-down", "too-few"]
VERDICTS: tuple[Verdict, ...] = ("interior", "edge-low", "edge-high", "open-down", "too-few")
LEAST_SIZES = 3


@dataclass(frozen=True)
class Minima:
    """One minimum for each of S curves. ``verdicts`` (S,) indexes `VERDICTS`; ``sizes`` and ``losses``
    (S,) are NaN where the verdict isn't interior."""

    verdicts: NDArray[np.int64]
    sizes: Array
    losses: Array

    @property
    def interior(self) -> NDArray[np.bool_]:
        return np.asarray(self.verdicts == 0)


def parabola(sizes: Any, losses: Any) -> Minima:
    """Minimum of the least-squares parabola in log size. ``sizes`` (P,), ``losses`` (S, P)."""
    x, y = _checked(sizes, losses)
    if len(x) < LEAST_SIZES:
        return _none("too-few", len(y))
    middle, square, slope, constant = parabola_through(x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = middle - slope / (2 * square)
        lowest = constant - slope**2 / (4 * square)
    flat = np.abs(square) <= 1e-12 * np.abs(constant)
    verdicts = np.select([flat | (square < 0), vertex <= x[0], vertex >= x[-1]], [3, 1, 2], 0)
    return _minima(verdicts, vertex, lowest)


def parabola_through(x: Array, y: Array) -> tuple[float, Array, Array, Array]:
    """Least-squares parabola ``square * (x - middle)**2 + slope * (x - middle) + constant`` of each row
    of ``y`` (S, P) at ``x`` (P,): the middle, and the three coefficients (S,).

    It sums the products with orthogonal polynomials itself: a linear algebra library rounds otherwise on
    another processor."""
    middle = float(x.mean())
    rows = _rows_of_parabola(x)
    square, slope, constant = ((y * row).sum(axis=1) for row in rows)
    return middle, square, slope, constant


def _rows_of_parabola(x: Array) -> tuple[Array, Array, Array]:
    """The weights (P,) of the losses in each coefficient of `parabola_through`."""
    first = x - x.mean()
    length = (first**2).sum()
    skew, spread = (first**3).sum() / length, length / len(x)
    second = first**2 - skew * first - spread
    square = second / (second**2).sum()
    return square, first / length - skew * square, 1 / len(x) - spread * square


def minimum_weights(sizes: Any, size: float) -> Array:
    """Weights (P,) of the losses at ``sizes`` (P,) in the parabola's loss at ``size``. At its minimum
    they are the derivatives of the lowest loss, too: there, a shift of the minimum changes nothing
    (delta method)."""
    x = np.log(np.asarray(sizes, float))
    square, slope, constant = _rows_of_parabola(x)
    away = float(np.log(size) - x.mean())
    return np.asarray(constant + away * slope + away**2 * square)


def scatter(sizes: Any, losses: Any, seeds: Any) -> Spread | None:
    """Standard deviation of the points of one curve around its least-squares parabola, with P - 3
    degrees of freedom; None for three points. ``sizes`` (P,), ``losses`` (P,): means over ``seeds`` (P,)
    runs each, so that the distances are scaled to those of one run. It contains the noise between
    seeds, and what a parabola misses of the curve."""
    x, (y,) = _checked(sizes, losses)
    if len(x) <= LEAST_SIZES:
        return None
    x = x - x.sum() / len(x)
    square = x**2 - (x**2).sum() / len(x)
    square = square - x * (x * square).sum() / (x**2).sum()
    rest = y - y.sum() / len(y)
    for term in (x, square):  # orthogonal polynomials: each takes its part out
        rest = rest - term * (term * rest).sum() / (term**2).sum()
    freedom = len(x) - LEAST_SIZES
    return Spread(float(np.sqrt((np.asarray(seeds) * rest**2).sum() / freedom)), freedom)


def akima(sizes: Any, losses: Any) -> Minima:
    """Minimum of the Akima interpolation in log size. ``sizes`` (P,), ``losses`` (S, P)."""
    x, y = _checked(sizes, losses)
    if len(x) < LEAST_SIZES:
        return _none("too-few", len(y))
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
    return _minima(np.where(concave, 3, ends_higher), at, lowest)


#: The fits by name, in the order of their columns.
CURVE_FITS: dict[str, Callable[[Any, Any], Minima]] = {"parabola": parabola, "akima": akima}


def _checked(sizes: Any, losses: Any) -> tuple[Array, Array]:
    x, y = np.log(np.asarray(sizes, float)), np.atleast_2d(np.asarray(losses, float))
    if (np.diff(x) <= 0).any():
        raise ValueError("sizes must ascend and differ")
    return x, y


def _none(verdict: Verdict, rows: int) -> Minima:
    nothing = np.full(rows, np.nan)
    return Minima(np.full(rows, VERDICTS.index(verdict)), nothing, nothing)


def _minima(verdicts: Any, log_sizes: Array, losses: Array) -> Minima:
    inside = verdicts == 0
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = np.exp(np.where(inside, log_sizes, np.nan))
    return Minima(np.asarray(verdicts), sizes, np.where(inside, losses, np.nan))
