"""Targets of benchmarks: figures with a bound, and a check of each."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: One figure, or one per turn; their median counts.
Measured = float | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Target:
    """``bound`` is the most or the least that ``measured`` may be; without one it is only shown."""

    what: str
    measured: Measured
    unit: str
    bound: float | None
    side: Literal["at most", "at least"]

    @property
    def figure(self) -> float:
        if isinstance(self.measured, int | float):
            return self.measured
        return statistics.median(self.measured)

    @property
    def reached(self) -> bool:
        if self.bound is None:
            return True
        # NaN reaches no target.
        return self.figure <= self.bound if self.side == "at most" else self.figure >= self.bound

    @property
    def verdict(self) -> str:
        if self.bound is None:
            return "no target"
        return "reached" if self.reached else "MISSED"

    def __str__(self) -> str:
        asked = "" if self.bound is None else f"{self.side} {self.bound:g}"
        value = f"{self.figure:.3g} {self.unit}"
        return f"{self.verdict:<10}{value:>11}{self._quartiles():>18}  {asked:<15}{self.what}"

    def _quartiles(self) -> str:
        """Between which half of the turns lie."""
        if isinstance(self.measured, int | float) or len(self.measured) < 2:
            return ""
        low, _, high = statistics.quantiles(self.measured, n=4, method="inclusive")
        return f"[{low:.3g} to {high:.3g}]"


#: Over the columns of `Target.__str__`.
HEADER = f"{'target':<10}{'value':>11}{'[quartiles]':>18}  {'asked':<15}of what"


class Reach:
    """Notes what a benchmark reached: ``reach(what, measured, at most, unit)``."""

    def __init__(self) -> None:
        self.targets: list[Target] = []

    def __call__(self, what: str, measured: Measured, at_most: float, unit: str) -> None:
        self._note(what, measured, unit, at_most, "at most")

    def at_least(self, what: str, measured: Measured, bound: float, unit: str) -> None:
        self._note(what, measured, unit, bound, "at least")

    def shown(self, what: str, measured: Measured, unit: str) -> None:
        """A figure that nothing is asked of."""
        self._note(what, measured, unit, None, "at most")

    def _note(
        self,
        what: str,
        measured: Measured,
        unit: str,
        bound: float | None,
        side: Literal["at most", "at least"],
    ) -> None:
        target = Target(what=what, measured=measured, unit=unit, bound=bound, side=side)
        self.targets.append(target)

    def missed(self) -> str:
        """The targets that weren't reached, each with its figure; empty if there is none."""
        return "; ".join(
            f"{target.what}: {target.figure:.3g} {target.unit}, {target.side} {target.bound:g} was asked"
            for target in self.targets
            if not target.reached
        )
