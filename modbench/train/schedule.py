"""Learning rate over a run. Imports no torch."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from modbench.errors import UserError
from modbench.typed import Count, Share

Kind = Literal["cosine", "wsd"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """``cosine``: linear warm-up, then a cosine to the end. ``wsd``: warm-up, constant rate, linear
    decay (Hu et al. 2024, arXiv:2404.06395, Haegele et al. 2024, arXiv:2405.18392). Raises UserError:
    there is not one budget, or warm-up and decay of ``wsd`` leave no room between them."""

    #: records until November 2026 also have ``trapezoid``: ``wsd``, at several budgets perhaps
    kind: Kind | Literal["trapezoid"] = "cosine"
    #: the training FLOPs, realised, convention ``model``: one number, in a list as records have it
    budgets: tuple[Count, ...]
    warmup: Share = 0.1  #: fraction of the budget in which the learning rate rises linearly
    final_learning_rate: Share = 0.1  #: fraction of the peak at the end
    decay: Share = 0.2  #: wsd: fraction of the budget in which the rate decays

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(self.budgets))
        if not self.budgets or (len(self.budgets) > 1 and self.kind != "trapezoid"):
            raise UserError(f"budgets of a schedule are {list(self.budgets)}; it must be one")
        if self.kind == "wsd" and self.warmup + self.decay >= 1:
            raise UserError(
                f"warmup is {self.warmup} and decay {self.decay}; they must add up to less than 1"
            )

    @property
    def budget(self) -> int:
        """The training FLOPs; the largest of several."""
        return self.budgets[-1]

    def learning_rate(self, peak: float, done: float) -> float:
        """The rate of a step. ``done``: fraction of the budget that is spent after it, if all further
        steps cost as much as the last."""
        if done < self.warmup:
            return peak * done / self.warmup
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
