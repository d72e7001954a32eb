"""Learning rates of a scheme in an isoFLOP suite: the choice at the middle size and budget, the law for
other widths, and its checks there."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isclose, log
from typing import Any, Literal

#: Learning rates at one size that check the law.
LEAST_RATES = 3
#: The entry ``isoflop`` of a row in a suite's record.
Plan = Mapping[str, Any]
_Tried = Mapping[float, Any]  # runs by learning rate


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


@dataclass(frozen=True)
class Rates:
    """The rates tried for a scheme at one depth. Runs are rows of the frame of results with their
    ``loss``, None if they were lost."""

    plan: Plan
    middle: _Tried  #: at the middle size and budget
    others: Mapping[tuple[int, int], _Tried]  #: by budget and width
    choice: RateChoice
    exponent: float  #: of the law, after its check

    @classmethod
    def of(cls, runs: Iterable[Any], plan: Plan) -> "Rates":
        """The rates of ``runs`` with the seed of the learning rates."""
        tried: dict[tuple[int, int], dict[float, Any]] = defaultdict(dict)
        for run in runs:
            if run.seed == plan["seed"] and run.status != "failed":
                tried[run.budget, run.width][run.learning_rate] = run
        middle = tried.pop((plan["middle_budget"], plan["middle_width"]), {})
        middle = dict(sorted(middle.items()))
        choice = choose_rate(plan["learning_rates"], _losses(middle), plan["extensions"])
        return cls(plan, middle, tried, choice, _exponent(plan, tried, choice.best))

    def at(self, width: int, exponent: float | None = None) -> float | None:
        """The rate of a model of ``width``; None before any was chosen."""
        if self.choice.best is None or self.choice.verdict == "open":
            return None
        exponent = self.exponent if exponent is None else exponent
        return rate_at(self.choice.best, self.plan["middle_width"], width, exponent)

    def is_on_curve(self, run: Any) -> bool:
        """Return True unless ``run`` only tries a learning rate: another one belongs to its size, or its
        seed is that of the learning rates only."""
        if run.seed == self.plan["seed"] and not self.plan.get("seed_on_curve", True):
            return False
        return bool(run.learning_rate == self.at(run.width))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of `modbench.analysis.curves.Curves.rates`; if none was tried, one without a rate."""
        tried: Iterable[tuple[float | None, Any]] = self.middle.items() or [(None, None)]
        for rate, run in tried:
            yield {
                "width": self.plan["middle_width"],
                "budget": self.plan["middle_budget"],
                "learning_rate": rate,
                "loss": run and run.loss,
                "status": run and run.status,
                "chosen": rate is not None and rate == self.choice.best,
                "minimum": self.choice.verdict,
                "exponent": self.exponent,
                "exponent_stated": float(self.plan["exponent"]),
            }

    def checks(self) -> Iterator[dict[str, Any]]:
        """Rows of `modbench.analysis.curves.Curves.laws`: of the law, and of the one that the suite
        states if its checks led to another exponent."""
        for exponent in dict.fromkeys((float(self.plan["exponent"]), self.exponent)):
            for (budget, width), runs in sorted(self.others.items()):
                known = {rate: loss for rate, loss in _losses(runs).items() if loss is not None}
                rate = self.at(width, exponent)
                if rate is None or len(known) < LEAST_RATES or rate not in known:
                    continue
                best = min(known, key=known.__getitem__)
                yield {
                    "budget": budget,
                    "width": width,
                    "exponent": exponent,
                    "valid": exponent == self.exponent,
                    "learning_rate": rate,
                    "best_learning_rate": best,
                    "loses": known[rate] - known[best],
                }


def _losses(runs: _Tried) -> dict[float, float | None]:
    return {rate: run.loss for rate, run in runs.items()}


def _exponent(plan: Plan, others: Mapping[tuple[int, int], _Tried], best: float | None) -> float:
    """The exponent of the law: the suite's, or the one that `modbench run` refined by the check at the
    ends of the middle budget."""
    stated = float(plan["exponent"])
    if not plan.get("refine") or best is None:
        return stated
    middle = plan["middle_width"]
    checks: dict[int, dict[float, float | None]] = {}
    for (budget, width), runs in others.items():
        law = rate_at(best, middle, width, stated)
        rates = (law, *neighbours(plan["learning_rates"], law))
        if budget == plan["middle_budget"] and all(rate in runs for rate in rates):
            checks[width] = {rate: runs[rate].loss for rate in rates}
    if len(checks) < 2:  # not checked at both ends yet
        return stated
    return refined_exponent(stated, best, middle, checks, float(plan.get("law_margin", plan["margin"])))
