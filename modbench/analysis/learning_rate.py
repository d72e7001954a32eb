"""Choice of a scheme's learning rate from runs at one size and budget; its law for other sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isclose, log
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


def refined_exponent(
    exponent: float,
    best: float,
    middle_width: int,
    tried: Mapping[int, Mapping[float, float | None]],
    margin: float,
) -> float:
    """The exponent of the law after its check at other widths: ``exponent`` if the law's rate loses at
    most ``margin`` nats at each of them, else that of the line through ``best`` at ``middle_width`` (in
    logarithms) next to the best rates there.

    ``tried``: losses by width and rate, for each width the law's rate and its neighbours; None is a
    diverged run."""
    fails, products, squares = False, 0.0, 0.0
    for width, losses in tried.items():
        known = {rate: _loss(loss) for rate, loss in losses.items()}
        law = rate_at(best, middle_width, width, exponent)
        fails = fails or known.get(law, inf) - min(known.values()) > margin
        distance = log(width / middle_width)
        products += distance * log(_lowest(known) / best)
        squares += distance**2
    return round(products / squares, 3) if fails else exponent


def _lowest(losses: Mapping[float, float]) -> float:
    """The rate at the minimum of the parabola through three ``losses`` (in the logarithm of the rate),
    within their range; the best rate if one of them diverged or the parabola has no minimum."""
    best = min(losses, key=losses.__getitem__)
    if len(losses) != 3 or inf in losses.values():
        return best
    (low, below), (middle, at), (high, above) = sorted(losses.items())
    curvature = below - 2 * at + above  # the rates stand in one ratio
    if curvature <= 0:
        return best
    shift = (below - above) / (2 * curvature)
    return middle * (high / middle if shift > 0 else middle / low) ** max(-1.0, min(1.0, shift))


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
