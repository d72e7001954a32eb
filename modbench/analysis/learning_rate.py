"""Choice of a scheme's learning rate from runs at one size and budget; its law for other sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isclose
from typing import Literal


@dataclass(frozen=True)
class RateChoice:
    """``best`` is the rate of least loss so far, None without any. ``verdict``: interior if a smaller
    and a larger rate are worse; edge if the grid ended on one side and may not be extended further;
    open if the rates ``wanted`` must be run first."""

    verdict: Literal["interior", "edge", "open"]
    best: float | None
    wanted: tuple[float, ...] = ()


def choose_rate(
    grid: Sequence[float], losses: Mapping[float, float | None], extensions: int = 2
) -> RateChoice:
    """Choose among the rates of ``grid`` (ascending, three or more). ``losses`` has those that were run;
    None is a diverged run. If the best is at an end, the grid is extended there by its own ratio,
    ``extensions`` times at most."""
    rates = list(grid)
    added = 0
    while True:
        missing = tuple(rate for rate in rates if rate not in losses)
        known = {rate: _loss(losses[rate]) for rate in rates if rate in losses}
        best = min(known, key=known.__getitem__, default=None)
        if best is not None and known[best] == inf:
            best = None
        if missing:
            return RateChoice("open", best, missing)
        if best is None:
            return RateChoice("edge", None)
        if rates[0] < best < rates[-1]:
            return RateChoice("interior", best)
        if added == extensions:
            return RateChoice("edge", best)
        added += 1
        if best == rates[0]:
            rates.insert(0, rounded(rates[0] * rates[0] / rates[1]))
        else:
            rates.append(rounded(rates[-1] * rates[-1] / rates[-2]))


def rate_at(best: float, middle_width: int, width: int, exponent: float) -> float:
    """The learning rate of a model of ``width``: ``best``, found at ``middle_width``, times the ratio of
    widths to the power of ``exponent``."""
    return rounded(best * (width / middle_width) ** exponent)


def neighbours(grid: Sequence[float], rate: float) -> tuple[float, float]:
    """The rates one step of the grid's ratio below and above ``rate``."""
    ratio = grid[1] / grid[0]
    return rounded(rate / ratio), rounded(rate * ratio)


def is_geometric(grid: Sequence[float]) -> bool:
    """Return True if ``grid`` ascends by one ratio, within 30 %, as 1, 2, 5, 10 doesn't quite."""
    ratios = [large / small for small, large in pairwise(grid)]
    return all(ratio > 1 and isclose(ratio, ratios[0], rel_tol=0.3) for ratio in ratios)


def rounded(rate: float) -> float:
    """``rate`` to three significant digits, so that equal rates are equal numbers."""
    return float(f"{rate:.3g}")


def _loss(loss: float | None) -> float:
    return inf if loss is None else loss
