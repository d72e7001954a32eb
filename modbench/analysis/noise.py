"""Noise between seeds, measured from repeated cells, and draws of it.

The loss of a cell with seed s is modelled as mean + shift(budget, s) + residual. The shift is shared by
every cell of that budget and seed (the order of the data), so it cancels in differences between schemes
that were run with the same seeds. Losses of one run at several budgets (a trapezoid's trunk) share both:
they are drawn as one, and count once as a measurement of the noise. Shapes: S draws.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from modbench.errors import UserError

Array = NDArray[np.float64]
#: Degrees of freedom from which a scheme's own spread is used; with fewer, the pooled one is.
LEAST_FREEDOM = 4


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained cell. ``size`` is on the axis of the curve, for example active parameters."""

    scheme: str
    budget: float  #: training FLOPs of the curve
    size: float
    tokens: float
    loss: float  #: held-out, nats per token
    seed: int
    depth: int | None = None  #: layers, in a sweep that has a curve for each of several depths
    trunk: str | None = None  #: names the run that gave losses at several budgets; None: this one only


@dataclass(frozen=True)
class Spread:
    """A standard deviation and the degrees of freedom that it was estimated with."""

    sd: float
    freedom: int


def pooled(spreads: Iterable[Spread]) -> Spread | None:
    """The standard deviation of ``spreads`` together; None without any."""
    known = list(spreads)
    freedom = sum(spread.freedom for spread in known)
    squares = math.fsum(spread.freedom * spread.sd**2 for spread in known)
    return Spread(math.sqrt(squares / freedom), freedom) if freedom else None


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Measured spreads. ``residuals`` has a scheme only if its repeated cells give `LEAST_FREEDOM`
    degrees of freedom; ``pooled`` is over all schemes, None if no cell was repeated."""

    residuals: Mapping[str, Spread]
    pooled: Spread | None
    shift: Spread

    def residual(self, scheme: str) -> Spread | None:
        return self.residuals.get(scheme, self.pooled)


class Cell(NamedTuple):
    """The settings that runs share which differ in their seed only."""

    scheme: str
    budget: float
    depth: int | None
    size: float


def by_cell(runs: Iterable[Run]) -> dict[Cell, dict[int, Run]]:
    """The runs of each cell by seed, in a fixed order."""

    def order(run: Run) -> tuple[str, float, int, float, int]:
        return run.scheme, run.budget, run.depth or 0, run.size, run.seed

    cells: dict[Cell, dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=order):
        seeds = cells[Cell(run.scheme, run.budget, run.depth, run.size)]
        if run.seed in seeds:
            raise UserError(
                f"two runs of {run.scheme} have budget {run.budget:g}, size {run.size:g} and seed "
                f"{run.seed}, with different settings; keep the records of one of them, or give one "
                "another label"
            )
        seeds[run.seed] = run
    return dict(cells)


def measure_noise(runs: Iterable[Run]) -> Noise:
    """Estimate the noise from the repeated cells, by analysis of variance (cell means and seed shifts)
    over the cells of each budget that have the same seeds."""
    tables: dict[tuple[float, tuple[int, ...]], dict[Cell, list[float]]] = defaultdict(dict)
    grouped = by_cell(runs)
    for cell, seeds in grouped.items():
        if len(seeds) > 1:
            tables[cell.budget, tuple(seeds)][cell] = [run.loss for run in seeds.values()]
    trunks = {cell: _trunks(seeds.values()) or (repr(cell),) for cell, seeds in grouped.items()}
    times_shared = Counter(trunks.values())
    squares: dict[str, float] = defaultdict(float)
    freedoms: dict[str, float] = defaultdict(float)
    shifts: list[tuple[float, int, int]] = []  # sum of squares, degrees of freedom, cells
    for table in tables.values():
        losses = np.array(list(table.values()))  # (cells, seeds)
        deviations = losses - losses.mean(axis=1, keepdims=True)
        cells, repeats = losses.shape
        if cells > 1:
            shared = deviations.mean(axis=0)
            deviations = deviations - shared
            shifts.append((float((shared**2).sum()), repeats - 1, cells))
        free = (repeats - 1) * (cells - 1) / cells if cells > 1 else repeats - 1
        for cell, row in zip(table, deviations, strict=True):
            once = 1 / times_shared[trunks[cell]]
            squares[cell.scheme] += once * float((row**2).sum())
            freedoms[cell.scheme] += once * free
    residuals = {
        scheme: Spread(float(np.sqrt(squares[scheme] / freedoms[scheme])), round(freedoms[scheme]))
        for scheme in squares
        if round(freedoms[scheme]) >= LEAST_FREEDOM
    }
    if not squares:
        return Noise(residuals={}, pooled=None, shift=Spread(0.0, 1))
    total = sum(freedoms.values())
    pooled = Spread(float(np.sqrt(sum(squares.values()) / total)), max(1, round(total)))
    free = sum(freedom for _, freedom, _ in shifts)
    # The mean square of the shifts contains residual / cells.
    variance = sum(s - f * pooled.sd**2 / cells for s, f, cells in shifts) / free if free else 0.0
    return Noise(
        residuals=residuals,
        pooled=pooled,
        shift=Spread(float(np.sqrt(max(0.0, variance))), max(1, free)),
    )


def draw_losses(runs: Iterable[Run], noise: Noise, draws: int, seed: int = 0) -> dict[Cell, Array]:
    """The mean loss of each cell plus ``draws`` draws of its noise: arrays (S,). Spreads are themselves
    drawn, from the distribution of their estimate, so that few seeds give wide intervals (Student's
    t). Each quantity has its own random numbers: more runs elsewhere change no draw of a cell."""
    cells = by_cell(runs)

    def generator(*quantity: object) -> np.random.Generator:
        return np.random.default_rng([seed, crc32(repr(quantity).encode())])

    def scale(spread: Spread, of: str) -> Array:
        chi_square = generator("spread", of).chisquare(spread.freedom, draws)
        return spread.sd * np.sqrt(spread.freedom / chi_square)

    def shift(run: Run) -> Array:
        at = "trunk" if run.trunk else float(run.budget)
        return shift_sd * generator("shift", at, run.seed).standard_normal(draws)

    shift_sd = scale(noise.shift, "shift")
    drawn = {}
    for cell, seeds in cells.items():
        mean = np.mean([run.loss for run in seeds.values()])
        shifts = np.mean([shift(run) for run in seeds.values()], axis=0)
        spread = noise.residual(cell.scheme)
        if spread is None:
            residual = np.zeros(draws)
        else:
            key = (cell.scheme, cell.budget, cell.size)  # a sweep of one depth keeps its numbers
            depth = () if cell.depth is None else (cell.depth,)
            if trunks := _trunks(seeds.values()):
                each = [generator("residual", trunk).standard_normal(draws) for trunk in trunks]
                standard = np.sum(each, axis=0) / np.sqrt(len(seeds))
            else:
                standard = generator("residual", *key, *depth).standard_normal(draws)
            residual = scale(spread, cell.scheme) * standard / np.sqrt(len(seeds))
        drawn[cell] = mean + shifts + residual
    return drawn


def _trunks(runs: Iterable[Run]) -> tuple[str, ...]:
    """The trunks of ``runs``; empty unless each has one."""
    trunks = [run.trunk for run in runs]
    return tuple(trunk for trunk in trunks if trunk) if all(trunks) else ()
