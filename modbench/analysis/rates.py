"""Learning rates of a scheme in an isoFLOP suite: the choice at the middle size and budget, the law for
other widths, and its checks there."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modbench.analysis.learning_rate import (
    RateChoice,
    choose_rate,
    neighbours,
    rate_at,
    refined_exponent,
)

#: Learning rates at one size that check the law.
LEAST_RATES = 3
#: The entry ``isoflop`` of a row in a suite's record.
Plan = Mapping[str, Any]
_Tried = Mapping[float, Any]  # runs by learning rate


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
        """Rows of `modbench.analysis.curves.Curves.rates`."""
        for rate, run in self.middle.items():
            yield {
                "width": self.plan["middle_width"],
                "budget": self.plan["middle_budget"],
                "learning_rate": rate,
                "loss": run.loss,
                "status": run.status,
                "chosen": rate == self.choice.best,
                "verdict": self.choice.verdict,
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
