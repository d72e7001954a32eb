"""Checks of the learning rate's law: the rates next to its own, at other sizes and budgets than the one
at which the rate was chosen."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modbench.analysis.learning_rate import neighbours, rate_at, refined_exponent
from modbench.records.result import Result

#: Learning rates at one size that check the law.
LEAST_RATES = 3


@dataclass(frozen=True, kw_only=True)
class LawCheck:
    """The rate of the law at ``width`` and the best of those tried there. ``lost``: how much higher the
    loss of the law's rate is, in nats per token. ``budget``: None for the middle one."""

    width: int
    budget: int | None
    rate: float
    best: float
    lost: float

    def __str__(self) -> str:
        place = f"width {self.width}" + (f" at {self.budget:g} FLOPs" if self.budget else "")
        if self.best == self.rate:
            return f"{place}: {self.rate:g} by the law, which is best"
        return f"{place}: {self.rate:g} by the law, {self.best:g} is better by {self.lost:.4f} nats"


def check_law(
    records: Iterable[Result], plan: Mapping[str, Any], rate_at_width: Callable[[int], float | None]
) -> list[LawCheck]:
    """Check the law of a scheme by its ``records``, at each size and budget where enough rates were
    tried. ``rate_at_width``: the rate of the law at a width."""
    checks = []
    for (budget, width), losses in sorted(_tried(records, plan).items()):
        rate = rate_at_width(width)
        known = {each: loss for each, loss in losses.items() if loss is not None}
        if rate is None or len(known) < LEAST_RATES or rate not in known:
            continue
        best = min(known, key=known.__getitem__)
        checks.append(
            LawCheck(
                width=width,
                budget=None if budget == plan["middle_budget"] else budget,
                rate=rate,
                best=best,
                lost=known[rate] - known[best],
            )
        )
    return checks


def exponent_of(records: Iterable[Result], plan: Mapping[str, Any], best: float | None) -> float:
    """The exponent of the law: the suite's, or the one that `modbench run` refined by the check at the
    ends of the middle budget."""
    stated = float(plan["exponent"])
    if not plan.get("refine") or best is None:
        return stated
    middle = plan["middle_width"]
    checks: dict[int, dict[float, float | None]] = {}
    for (budget, width), losses in _tried(records, plan).items():
        law = rate_at(best, middle, width, stated)
        rates = (law, *neighbours(plan["learning_rates"], law))
        if budget == plan["middle_budget"] and all(rate in losses for rate in rates):
            checks[width] = {rate: losses[rate] for rate in rates}
    if len(checks) < 2:  # not checked at both ends yet
        return stated
    return refined_exponent(stated, best, middle, checks, float(plan.get("law_margin", plan["margin"])))


def _tried(
    records: Iterable[Result], plan: Mapping[str, Any]
) -> dict[tuple[int, int], dict[float, float | None]]:
    """Losses of the seed of the learning rates, by budget and width and by rate, but those that chose
    the rate; None: lost."""
    tried: dict[tuple[int, int], dict[float, float | None]] = defaultdict(dict)
    for record in records:
        place = (record.budget, record.width)
        if record.seed != plan["seed"] or record.status == "failed":
            continue
        if place != (plan["middle_budget"], plan["middle_width"]):
            loss = record.metrics.get("heldout_loss") if record.status == "ok" else None
            tried[place][record.learning_rate] = loss
    return tried
