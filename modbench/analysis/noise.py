"""Noise between seeds, measured from repeated cells, and draws of it.

The loss of a cell with seed s is modelled as mean + shift(budget, s) + residual. The shift is shared by
every cell of that budget and seed (the order of the data), so it cancels in differences between schemes
that were run with the same seeds. Means and shifts of a budget are fitted together, by least squares;
cells may have different seeds. The residual has one standard deviation for all schemes, unless
Bartlett's test (1937) rejects that theirs are equal: then each scheme has its own, with the shift in it.
Shapes: S draws.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from modbench.errors import UserError

Array = NDArray[np.float64]
#: Bartlett's p at or below which each scheme has its own spread.
_UNEQUAL = 0.05
#: Deviations up to this part of the values are rounding, which differs between processors: they count
#: as 0.
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained cell. ``size`` is on the axis of the curve, for example active parameters."""

    scheme: str
    budget: float  #: training FLOPs of the curve
    size: float
    tokens: float
    loss: float  #: validation loss, nats per token
    seed: int
    depth: int | None = None  #: layers, in a sweep that has a curve for each of several depths


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
    """Measured spreads of one run: each scheme's own and that of all, with the shift (``deviation``);
    what remains of that of all without the shift (``pooled``), None if no cell was repeated; and the
    shift, which is 0 where each scheme has its own spread. ``p``: of Bartlett's test that the schemes'
    own are equal; None: fewer than two schemes have one."""

    own: Mapping[str, Spread]
    deviation: Spread | None
    pooled: Spread | None
    p: float | None
    shift: Spread

    @property
    def is_pooled(self) -> bool:
        """Return True if one spread holds for all schemes."""
        return self.p is None or self.p > _UNEQUAL

    def of(self, scheme: str) -> Spread | None:
        """The spread of one run of ``scheme``; that of all if it has no repeated run."""
        return self.pooled if self.is_pooled else self.own.get(scheme, self.pooled)

    def in_words(self, rows: str = "all schemes") -> str:
        """The sentence on the model and its numbers; empty without repeated runs. ``rows``: those with
        this noise."""
        if self.pooled is None or self.deviation is None:
            return ""
        test = f" (Bartlett's p {self.p:.2g})" if self.p is not None else ""
        stated = (
            f"Noise of one run between seeds: {self.deviation.sd:.4f}, pooled over {rows}, "
            f"{self.deviation.freedom} degrees of freedom"
        )
        if self.is_pooled:
            if self.pooled.sd < self.deviation.sd:
                stated += (
                    f"; {self.pooled.sd:.4f} ({self.pooled.freedom}) without the part that runs of "
                    "equal seed share, which cancels in differences"
                )
            elif self.pooled != self.deviation:
                stated += (
                    f"; {self.pooled.sd:.4f} ({self.pooled.freedom}) in differences: runs of equal seed "
                    "share nothing that lowers it"
                )
            return f"{stated}{test}."
        return (
            f"{stated}; but the schemes differ in their noise{test}, so each has its own, with its own "
            "degrees of freedom."
        )


def bartlett(spreads: Iterable[Spread]) -> float | None:
    """The p-value of Bartlett's test (1937) that all ``spreads`` estimate one standard deviation; None
    for fewer than two."""
    from scipy.special import chdtrc  # dear to load, and what scores items needs no test

    known = list(spreads)
    together = pooled(known)
    if together is None or len(known) < 2 or together.sd == 0:
        return None
    if any(spread.sd == 0 for spread in known):
        return 0.0
    logs = math.fsum(of.freedom * math.log((together.sd / of.sd) ** 2) for of in known)
    inverse = math.fsum(1 / of.freedom for of in known) - 1 / together.freedom
    corrected = logs / (1 + inverse / (3 * (len(known) - 1)))
    return float(chdtrc(len(known) - 1, max(0.0, corrected)))  # rounding makes equal ones negative


class Cell(NamedTuple):
    """The settings that runs share which differ in their seed only."""

    scheme: str
    budget: float
    depth: int | None
    size: float


def by_cell(runs: Iterable[Run]) -> dict[Cell, dict[int, Run]]:
    """The runs of each cell by seed, in a fixed order."""

    cells: dict[Cell, dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda of: (of.scheme, of.budget, of.depth or 0, of.size, of.seed)):
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
    """Estimate the noise from the repeated cells, by analysis of variance: cell means and seed shifts of
    each budget (an unbalanced two-way layout)."""
    tables: dict[float, dict[Cell, dict[int, float]]] = defaultdict(dict)
    for cell, seeds in by_cell(runs).items():
        if len(seeds) > 1:
            tables[cell.budget][cell] = {seed: run.loss for seed, run in seeds.items()}
    parts: dict[str, list[tuple[float, float]]] = defaultdict(list)  # with the shift
    residuals: list[tuple[float, float]] = []  # sum of squares, degrees of freedom
    #: of each budget: sum of squares, degrees of freedom, and how often it holds the shift's variance
    shifts: list[tuple[float, int, float]] = []
    for table in tables.values():
        found = sorted({seed for losses in table.values() for seed in losses})
        ran = np.array(
            [[seed in losses for seed in found] for losses in table.values()], float
        )  # (C, S)
        losses = np.array([[of.get(seed, 0.0) for seed in found] for of in table.values()])
        repeats = ran.sum(axis=1, keepdims=True)
        deviations = ran * (losses - losses.sum(axis=1, keepdims=True) / repeats)
        # Normal equations of the shifts, after the cell means are taken out.
        normal = np.diag(ran.sum(axis=0)) - (ran / repeats).T @ ran
        freedom = int(np.linalg.matrix_rank(normal, hermitian=True))
        inverse = np.linalg.pinv(normal, rcond=1e-9, hermitian=True)
        shift = inverse @ deviations.sum(axis=0)
        rest = ran * (deviations - shift + (ran @ shift)[:, None] / repeats)
        # Degrees of freedom that the shifts take from each cell.
        taken = [
            float(np.trace(inverse @ (np.diag(row) - np.outer(row, row) / row.sum()))) for row in ran
        ]
        is_apart = repeats.sum() - len(table) > freedom  # else runs and shifts can't be told apart
        if is_apart:
            explained = float((deviations**2).sum() - (rest**2).sum())
            shifts.append((explained, freedom, float(np.trace(normal))))
        for cell, row, left, less in zip(table, deviations, rest, taken, strict=True):
            free = len(table[cell]) - 1
            with_shift = _squares(row, table[cell]), free
            parts[cell.scheme].append(with_shift)
            without = _squares(left, table[cell]), free - less
            residuals.append(without if is_apart else with_shift)
    own = {scheme: _spread(of) for scheme, of in parts.items()}
    p, deviation = bartlett(own.values()), pooled(own.values())
    if not own or (p is not None and p <= _UNEQUAL):
        return Noise(own=own, deviation=deviation, pooled=deviation, p=p, shift=Spread(0.0, 1))
    residual = _spread(residuals)
    free = sum(freedom for _, freedom, _ in shifts)
    # The squares that the shifts explain contain residuals, too.
    parts_of_shift = (f * (s - f * residual.sd**2) / times for s, f, times in shifts)
    variance = math.fsum(parts_of_shift) / free if free else 0.0
    shift_spread = Spread(math.sqrt(max(0.0, variance)), max(1, free))
    return Noise(own=own, deviation=deviation, pooled=residual, p=p, shift=shift_spread)


def _squares(deviations: Array, losses: Mapping[int, float]) -> float:
    """The sum of the squares of the deviations of one cell; 0 where they are rounding of its losses."""
    square = float((deviations**2).sum())
    return 0.0 if math.sqrt(square) <= ROUNDING * max(map(abs, losses.values())) else square


def _spread(parts: Sequence[tuple[float, float]]) -> Spread:
    """The spread of sums of squares with their degrees of freedom."""
    freedom = math.fsum(free for _, free in parts)
    squares = math.fsum(square for square, _ in parts)
    return Spread(math.sqrt(squares / freedom), max(1, round(freedom)))


def draw_losses(
    runs: Iterable[Run],
    spread_of: Callable[[Cell], Spread | None],
    shift: Spread,
    draws: int,
    seed: int = 0,
) -> dict[Cell, Array]:
    """The mean loss of each cell plus ``draws`` draws of its noise: arrays (S,). ``spread_of``: of one
    run of a cell. Spreads are themselves drawn, from the distribution of their estimate, so that few
    seeds give wide intervals (Student's t). Each quantity has its own random numbers: more runs
    elsewhere change no draw of a cell."""

    def generator(*quantity: object) -> np.random.Generator:
        return np.random.default_rng([seed, crc32(repr(quantity).encode())])

    def scale(spread: Spread, of: str) -> Array:
        chi_square = generator("spread", of).chisquare(spread.freedom, draws)
        return spread.sd * np.sqrt(spread.freedom / chi_square)

    def shift_of(run: Run) -> Array:
        return shift_sd * generator("shift", float(run.budget), run.seed).standard_normal(draws)

    shift_sd = scale(shift, "shift") if shift.sd else 0.0
    drawn = {}
    for cell, seeds in by_cell(runs).items():
        losses = np.full(draws, np.mean([run.loss for run in seeds.values()]))
        spread = spread_of(cell)
        if spread is not None:
            of_mean = generator("residual", tuple(cell)).standard_normal(draws) / np.sqrt(len(seeds))
            # Six digits name one estimate on every processor.
            losses += scale(spread, f"{spread.sd:.6g} {spread.freedom}") * of_mean
        if shift.sd:
            losses += np.mean([shift_of(run) for run in seeds.values()], axis=0)
        drawn[cell] = losses
    return drawn


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
