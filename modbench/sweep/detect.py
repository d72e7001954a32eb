"""`modbench plan SUITE --detect`: the seeds that a difference between two rows needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from modbench.errors import UserError, several
from modbench.sweep.wanted import Wanted

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Seeds of a row with which a difference of ``nats`` per token is told from 0 with a probability of
    `POWER`, by a two-sided test at `LEVEL`. ``noise``: standard deviation of one run, and its
    ``source``; ``rows``, ``runs`` and ``flops``: of the suite with as many seeds."""

    nats: float
    noise: float
    source: str
    seeds: int
    rows: int
    runs: int
    flops: int

    def in_words(self) -> str:
        return (
            f"To tell a difference of {self.nats:g} nats per token from 0 with a power of {POWER:.0%} "
            f"(one comparison, level {LEVEL:.0%}), a row needs {self.seeds} seeds: the noise of one run "
            f"is {self.noise:.4f} ({self.source}). {several(self.rows, 'row')}: {self.runs} runs, "
            f"{self.flops:.3g} FLOPs."
        )


def seeds_needed(nats: float, noise: float) -> int:
    """The seeds of each of two rows, two at least, of a z-test: the noise, of all rows together, is
    taken as known."""
    quantiles = NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)
    return max(2, math.ceil(2 * (quantiles * noise / nats) ** 2))


def detection(
    nats: float, noise: float | None, folder: Path, flops_of: Sequence[tuple[Wanted, int]]
) -> Detection:
    """The seeds for ``nats``, with the ``noise`` that is stated, else that of the records in ``folder``.
    ``flops_of``: the runs of the suite with their FLOPs. Raises UserError: a number isn't above 0, or no
    noise is recorded."""
    for name, value in (("--detect", nats), ("--noise", noise)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} is {value:g}; it must be above 0, in nats per token")
    of_row = {(wanted.label, wanted.budget): flops for wanted, flops in flops_of}
    source = "as stated"
    if noise is None:
        noise, source = _recorded(folder)
    seeds = seeds_needed(nats, noise)
    return Detection(
        nats=nats,
        noise=noise,
        source=source,
        seeds=seeds,
        rows=len(of_row),
        runs=seeds * len(of_row),
        flops=seeds * sum(of_row.values()),
    )


def _recorded(folder: Path) -> tuple[float, str]:
    """The largest noise of a comparison in ``folder``, and where it is from."""
    from modbench.report.suite import read

    _, suite, _ = read(folder, curves=False) if folder.is_dir() else (None, None, None)
    known = [of.pooled for of in suite.noise.values() if of.pooled] if suite else []
    if not known:
        raise UserError(
            f"{folder} has no row with repeated seeds, so the noise is unknown; name another folder "
            "with --results, or state the noise of one run with --noise, such as --noise 0.02"
        )
    largest = max(known, key=lambda spread: spread.sd)
    return largest.sd, f"{folder}, {largest.freedom} degrees of freedom"
