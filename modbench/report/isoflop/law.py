"""Check of the learning rate's law: the rates next to its own, at the largest size of the middle
budget."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modbench.records.result import Result

#: Learning rates at one size that check the law.
LEAST_RATES = 3


@dataclass(frozen=True, kw_only=True)
class LawCheck:
    """The rate of the law at ``width`` and the best of those tried there. ``lost``: how much higher the
    loss of the law's rate is, in nats per token."""

    width: int
    rate: float
    best: float
    lost: float

    def __str__(self) -> str:
        if self.best == self.rate:
            return f"width {self.width}: {self.rate:g} by the law, which is best"
        return (
            f"width {self.width}: {self.rate:g} by the law, {self.best:g} is better by "
            f"{self.lost:.4f} nats"
        )


def check_law(
    records: Iterable[Result], plan: Mapping[str, Any], rate_at: Callable[[int], float | None]
) -> LawCheck | None:
    """Check the law of a scheme by its ``records``; None if too few rates were tried. ``rate_at``: the
    rate of the law at a width."""
    tried: dict[int, dict[float, float]] = defaultdict(dict)
    for record in records:
        is_trial = (record.budget, record.seed) == (plan["middle_budget"], plan["seed"])
        if is_trial and record.status == "ok" and "heldout_loss" in record.metrics:
            tried[record.width][record.learning_rate] = record.metrics["heldout_loss"]
    width = max(tried, default=0)
    losses, rate = tried[width], rate_at(width) if width else None
    if len(losses) < LEAST_RATES or width == plan["middle_width"] or rate not in losses:
        return None
    best = min(losses, key=losses.__getitem__)
    return LawCheck(width=width, rate=rate, best=best, lost=losses[rate] - losses[best])
