"""Names of runs that can be typed: LABEL@BUDGET#SEED,lr=RATE, with the parts that are needed. Loads no
torch."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

_NUMBER = r"\d[\d.]*(?:e[+-]?\d+)?"
_PATTERN = re.compile(
    rf"(?P<row>.+?)(?:@(?P<budget>{_NUMBER}))?(?:#(?P<seed>\d+))?(?:,lr=(?P<rate>{_NUMBER}))?"
)


@dataclass(frozen=True, kw_only=True)
class RunName:
    """The name of a run at a budget; a part that is None is left out."""

    row: str  #: the label of its row, or the first characters of its key
    budget: int | None = None  #: training FLOPs
    seed: int | None = None
    learning_rate: float | None = None

    @classmethod
    def parsed(cls, text: str) -> "RunName":
        """The parts of ``text``; all of it is the row if it has no other part."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            return cls(row=text)
        row, budget, seed, rate = match.groups()
        try:
            return cls(
                row=row,
                budget=None if budget is None else int(Decimal(budget)),
                seed=None if seed is None else int(seed),
                learning_rate=None if rate is None else float(rate),
            )
        except ArithmeticError:  # 1.2.3 is part of a label
            return cls(row=text)

    def __str__(self) -> str:
        text = self.row
        if self.budget is not None:
            text += f"@{budget_text(self.budget)}"
        if self.seed is not None:
            text += f"#{self.seed}"
        if self.learning_rate is not None:
            text += f",lr={self.learning_rate:g}"
        return text

    def names(self, run: "RunName") -> bool:
        """Return True if the parts given here, besides the row, are those of ``run``."""
        rate = self.learning_rate
        return (
            self.budget in (None, run.budget)
            and self.seed in (None, run.seed)
            and (rate is None or f"{rate:g}" == f"{run.learning_rate:g}")
        )


def budget_text(budget: int) -> str:
    """``budget`` as people type it: 1e11; all digits if six do not suffice."""
    text = re.sub(r"e\+0*", "e", f"{budget:g}")
    return text if int(Decimal(text)) == budget else str(budget)


def shortest(runs: Sequence[RunName], keys: Sequence[str]) -> list[str]:
    """The names of ``runs``, which have all parts: the row, and the parts in which runs of the row
    differ. Runs that no part tells apart are named by the start of their ``keys``."""
    values: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for run in runs:
        for part in ("budget", "seed", "learning_rate"):
            values[run.row, part].add(getattr(run, part))
    differing: dict[str, list[str]] = defaultdict(list)
    for (row, part), of_row in values.items():
        if len(of_row) > 1:
            differing[row].append(part)
    names = [RunName(row=run.row, **{p: getattr(run, p) for p in differing[run.row]}) for run in runs]
    count = Counter(map(str, names))
    return [
        str(replace(name, row=key[:8], seed=None, learning_rate=None) if count[str(name)] > 1 else name)
        for name, key in zip(names, keys, strict=True)
    ]
