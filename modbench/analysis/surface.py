"""Fit of the loss surface L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2), by
the Huber loss of residuals in nats (Hoffmann et al. take those of log losses). Shapes: P runs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls, root

from modbench.errors import UserError

Array = NDArray[np.float64]

#: Residual in nats at which the Huber loss turns from square to linear.
DELTA = 1e-3
#: Range searched for both exponents.
EXPONENTS = (0.01, 2.0)
_POLISH_STEPS = 1000
_STARTS = np.geomspace(0.05, 1.2, 9)
#: The five unknowns, plus one residual.
_LEAST_RUNS = 6


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A fitted surface. ``huber`` is the mean Huber loss of its residuals, ``at_edge`` tells that an
    exponent ended at the edge of the searched range."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    huber: float
    at_edge: bool = False
    points: int = 0  #: that it is fitted to

    def loss(self, sizes: Any, tokens: Any) -> Array:
        """Loss in nats of models of ``sizes`` parameters trained on ``tokens`` tokens."""
        n, d = np.asarray(sizes, float), np.asarray(tokens, float)
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)


def _mean_huber(residuals: Array) -> float:
    """Mean Huber loss of ``residuals``: half the square up to `DELTA`, linear above it."""
    size = np.abs(residuals)
    return float(np.mean(np.where(size <= DELTA, residuals**2 / 2, DELTA * (size - DELTA / 2))))


def _linear(columns: Array, losses: Array, steps: int) -> tuple[float, Array]:
    """The non-negative E, A, B of least mean Huber loss for given exponents, by ``steps`` steps of
    reweighted least squares at most."""
    terms, _ = nnls(columns, losses)
    for _ in range(steps):
        residuals = losses - (columns * terms).sum(axis=1)
        root = np.sqrt(DELTA / np.maximum(np.abs(residuals), DELTA))
        new, _ = nnls(columns * root[:, None], losses * root)
        done = (np.abs(new - terms) <= 1e-11 * np.abs(terms)).all()
        terms = new
        if done:
            break
    return _mean_huber(losses - (columns * terms).sum(axis=1)), terms


def fit_surface(sizes: Any, tokens: Any, losses: Any) -> Surface:
    """Fit a `Surface` to runs by variable projection: search alpha and beta; E, A and B follow for each
    pair by non-negative least squares under the Huber loss. All three arguments have shape (P,). Raises
    UserError: fewer than six runs."""
    n, d, y = (np.asarray(values, float) for values in (sizes, tokens, losses))
    if len(y) < _LEAST_RUNS:
        raise UserError(
            f"a surface needs at least {_LEAST_RUNS} runs and got {len(y)}; add sizes or budgets"
        )
    n_unit, d_unit = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    log_n, log_d = np.log(n / n_unit), np.log(d / d_unit)

    def columns_of(alpha: float, beta: float) -> Array:
        return np.stack([np.ones_like(y), np.exp(-alpha * log_n), np.exp(-beta * log_d)], axis=1)

    def project(exponents: Array, steps: int = 100) -> tuple[float, Array]:
        return _linear(columns_of(*np.exp(exponents)), y, steps)

    def gradient(exponents: Array) -> Array:
        alpha, beta = np.exp(exponents)
        columns = columns_of(alpha, beta)
        _, terms = _linear(columns, y, _POLISH_STEPS)
        slopes = -columns[:, 1:] * terms[1:] * np.stack([alpha * log_n, beta * log_d], axis=1)
        residuals = np.clip(y - (columns * terms).sum(axis=1), -DELTA, DELTA)
        return np.asarray(-(residuals[:, None] * slopes).mean(axis=0) / DELTA)

    starts = [np.log([alpha, beta]) for alpha in _STARTS for beta in _STARTS]
    best = sorted(starts, key=lambda start: project(start, steps=3)[0])[:2]
    settings: dict[str, Any] = {
        "bounds": [tuple(np.log(EXPONENTS))] * 2,
        "options": {"xatol": 1e-9, "fatol": 1e-16, "maxiter": 2000},
    }
    fitted = min(
        (minimize(lambda x: project(x)[0], start, method="Nelder-Mead", **settings) for start in best),
        key=lambda result: float(result.fun),
    )
    # The search ends where the loss is flat to its last digit; the zero of the gradient is sharper, and
    # so the same nine digits on every processor.
    sharper = root(gradient, fitted.x, tol=1e-13)
    is_near = bool((np.abs(sharper.x - fitted.x) < 1e-5).all())
    exponents = sharper.x if is_near else fitted.x
    alpha, beta = np.exp(exponents)
    huber, (e, a, b) = project(exponents, _POLISH_STEPS)
    edge = any(np.isclose(value, end, rtol=1e-3) for value in (alpha, beta) for end in EXPONENTS)
    return Surface(
        E=float(e),
        A=float(a * n_unit**alpha),
        B=float(b * d_unit**beta),
        alpha=float(alpha),
        beta=float(beta),
        huber=huber,
        at_edge=bool(edge or a == 0 or b == 0),
        points=len(y),
    )
