"""Learning rate over a run, and the budgets at which the run is measured. Imports no torch."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from modbench.errors import UserError
from modbench.typed import Count, Share

Kind = Literal["cosine", "trapezoid"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A run has a point, weights to measure, at each of its ``budgets``.

    ``cosine``: linear warm-up, then a cosine to the end of the one budget. ``trapezoid`` (warm-up,
    constant rate, linear decay; Hu et al. 2024, arXiv:2404.06395, Haegele et al. 2024,
    arXiv:2405.18392): one trunk with a constant rate, from which a decay branches off for each budget.
    Raises UserError: the budgets don't ascend, a cosine has several, or a trapezoid has no room for its
    trunk."""

    kind: Kind = "cosine"
    budgets: tuple[Count, ...]  #: training FLOPs, realised, convention ``model``
    warmup: Share = 0.1  #: fraction of the smallest budget in which the learning rate rises linearly
    final_learning_rate: Share = 0.1  #: fraction of the peak at the end of the cosine, or of a decay
    decay: Share = 0.2  #: trapezoid: fraction of each budget in which the rate decays

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(self.budgets))
        if not self.budgets or any(
            low >= high for low, high in zip(self.budgets, self.budgets[1:], strict=False)
        ):
            raise UserError(f"budgets of a schedule are {list(self.budgets)}; they must ascend")
        if self.kind == "cosine" and len(self.budgets) > 1:
            raise UserError("a cosine has one budget; schedule = 'trapezoid' has several")
        if self.kind == "trapezoid" and self.warmup + self.decay >= 1:
            raise UserError(
                f"warmup is {self.warmup} and decay {self.decay}; they must add up to less than 1"
            )

    @property
    def shares_trunk(self) -> bool:
        """Return True if several budgets share the steps of one trunk."""
        return len(self.budgets) > 1

    def trunk(self, budget: int) -> int:
        """FLOPs of ``budget`` that are spent before its decay; a cosine has no separate decay."""
        return budget if self.kind == "cosine" else budget - round(self.decay * budget)

    def learning_rate(self, peak: float, done: float, budget: int, *, in_trunk: bool = False) -> float:
        """The rate after a step. ``done``: fraction of ``budget`` that is spent after the step, if all
        further steps cost as much as the last. ``in_trunk``: the step is before a trapezoid's decay,
        although it may end after the FLOPs at which that begins."""
        warm = done * budget / self.budgets[0] if len(self.budgets) > 1 else done
        if warm < self.warmup:
            return peak * warm / self.warmup
        if in_trunk:
            return peak
        low = self.final_learning_rate
        if self.kind == "cosine":
            progress = (done - self.warmup) / (1 - self.warmup)
            return peak * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)
        left = min(1.0, (1 - done) / self.decay) if self.decay else 1.0
        return peak * (low + (1 - low) * left)

    def as_json(self) -> dict[str, Any]:
        """The fields that alter weights, as a record holds them."""
        stated = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.kind == "cosine":
            del stated["decay"]
        return stated | {"budgets": list(self.budgets)}
