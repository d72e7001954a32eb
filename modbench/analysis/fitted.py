"""Comparisons of the schemes of an isoFLOP suite: at their optima, and of runs that differ in their
router only, such as those of a learned router and its random control."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from math import log
from statistics import fmean
from typing import Any

import numpy as np

from modbench.analysis.comparison import difference
from modbench.analysis.difference import line_at_zero, mean_difference
from modbench.analysis.frames import DENSE, SIZE, with_ends
from modbench.analysis.isoflop import HEADLINE, IsoFlop, Place
from modbench.analysis.learning_rate import Rates
from modbench.analysis.pairs import Pair

#: Budget, scheme, the other scheme, and the depth of both; None: each at its best depth.
Compared = tuple[float, str, str, int | None]
#: A scheme, a depth and a budget.
Curve = tuple[str, int | None, int]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The fitted curves of a suite, and what tells how its schemes are compared."""

    rows: Sequence[Any]  #: the finished runs of the curves
    points: Mapping[Curve, Sequence[Any]]  #: the sizes of each curve
    budgets: Sequence[int]
    rates: Mapping[Place, Rates]
    isoflop: IsoFlop
    comparable: set[Place]  #: may be ranked
    margin: float
    stated: Sequence[Mapping[str, Any]]
    untold: str  #: why no difference has a verdict

    def ranked(self, budget: int, fit: str = HEADLINE) -> list[str]:
        """The schemes that may be ranked at ``budget``, the lowest loss first."""
        at_budget = [at for at in self.isoflop.best(fit) if at.budget == budget and at.loss is not None]
        at_budget.sort(key=lambda at: (at.loss, at.scheme))
        return [at.scheme for at in at_budget if at.place in self.comparable]

    def processors(self, budget: float, *schemes: str, depth: int | None = None) -> set[str]:
        """The processor types of runs on the curves of ``schemes``, at ``depth`` or at all depths."""
        return set().union(*(self._processors[budget, scheme, depth] for scheme in schemes))

    @cached_property
    def _processors(self) -> dict[tuple[float, str, int | None], set[str]]:
        types: dict[tuple[float, str, int | None], set[str]] = defaultdict(set)
        for run in self.rows:
            for depth in (run.depth, None):
                types[run.budget, run.scheme, depth].add(run.processor)
        return types

    def pairs(self) -> list[Pair]:
        """Differences with a family, in which they are tested: those that the suite states; or those
        with the dense model and with the best scheme, and with the dense model at equal depth. Then all
        others, the lower loss first; and those of runs with equal settings."""
        ranked = [(budget, self.ranked(budget)) for budget in self.budgets]
        equal, others = self._at_equal_depth()
        if self.stated:
            roles = [of["role"] for of in self.stated]
            ordered = sorted(self.stated, key=lambda of: roles.index(of["role"]))
            tested: list[Pair | None] = [self._stated(of) for of in ordered]
        else:
            rows = [(at, scheme, schemes) for at, schemes in ranked for scheme in schemes]
            tested = [
                *(self._pair((at, of, DENSE, None), "dense") for at, of, _ in rows if of != DENSE),
                *(self._pair((at, of, to[0], None), "best") for at, of, to in rows if of != to[0]),
                *(self._pair(of, "dense, equal depth") for of in equal),
            ]
        pairs = [of for of in tested if of and (_is_tested(of) or self.stated)]
        known = (of for of, minus in pairs if minus is not None)
        seen = {(of["budget"], of["scheme"], of["other"], of["depth"]) for of in known}
        every: list[Compared] = [(at.budget, at.scheme, DENSE, None) for at in self.isoflop.best()]
        every += [(at, *of, None) for at, schemes in ranked for of in combinations(schemes, 2)]
        for compared in (*every, *equal, *others):
            budget, scheme, other, depth = compared
            both = {compared, (budget, other, scheme, depth)}
            pair = None if scheme == other or seen & both else self._pair(compared)
            if pair and (_is_tested(pair) or (other, depth) == (DENSE, None)):
                seen |= both
                pairs.append(pair)
        return [*pairs, *self._of_equal_runs()]

    def _pair(
        self, compared: Compared, family: str = "", stated: Mapping[str, Any] | None = None
    ) -> Pair | None:
        budget, scheme, other, depth = compared
        margin = stated.get("margin") if stated else self.margin
        minus = difference(self.isoflop, scheme, other, budget, margin, depth)
        if minus is None:
            return None
        same = len(self.processors(budget, scheme, other, depth=depth)) < 2
        named = {"budget": budget, "scheme": scheme, "other": other, "depth": depth, "family": family}
        named |= {"metric": "heldout_loss", "margin": margin, "same_processor": same}
        return named, replace(minus, untold=(family and self.untold) or minus.untold)

    def _stated(self, of: Mapping[str, Any]) -> Pair:
        """The pair that the suite states, with the reason if it can't be compared."""
        budget, schemes, depth = of["budget"], (of["a"], of["b"]), of.get("depth")
        optima = {name: self.isoflop.optima.get((name, budget, HEADLINE, depth)) for name in schemes}
        lacking = [name for name, at in optima.items() if at is None or at.loss is None]
        ranked = all(at and at.place in self.comparable for at in optima.values())
        pair = self._pair((budget, *schemes, depth), of["role"], of) if ranked else None
        why = f"no optimum: {', '.join(lacking)}" if lacking else "not ranked: a scheme or its rate"
        named = {"budget": budget, "scheme": of["a"], "other": of["b"], "depth": depth}
        named |= {"family": of["role"], "margin": of.get("margin"), "metric": "heldout_loss"}
        return pair or (named | {"no_verdict_because": self.untold or why}, None)

    def _at_equal_depth(self) -> tuple[list[Compared], list[Compared]]:
        """Pairs of comparable schemes with an optimum at the same depth: those with the dense model, and
        the others; none unless the suite has curves of several depths."""
        to_dense: list[Compared] = []
        others: list[Compared] = []
        depths = sorted({depth for _, depth in self.rates if depth is not None})
        for budget, depth in product(self.budgets, depths):
            places = [place for place in self.comparable if place[1] == depth]
            optima = (self.isoflop.optima.get((of[0], budget, HEADLINE, depth)) for of in places)
            known = [at for at in optima if at and at.loss is not None]
            names = [at.scheme for at in sorted(known, key=lambda at: (at.loss, at.scheme))]
            if DENSE in names:
                names.remove(DENSE)
                to_dense += [(budget, scheme, DENSE, depth) for scheme in names]
            others += [(budget, *of, depth) for of in combinations(names, 2)]
        return to_dense, others

    def _of_equal_runs(self) -> Iterator[Pair]:
        """All pairs of ranked schemes that share two or more cells (shape and budget): runs on their
        curves that agree in all but the router. Seeds are averaged within a cell. None is tested: the
        mean depends on the sizes that the grid has."""
        by_settings: dict[str, dict[str, Any]] = defaultdict(dict)
        for run in self.rows:
            if (run.scheme, run.depth) in self.comparable:
                by_settings[run.settings][run.scheme] = run
        matched: dict[tuple[str, str], list[tuple[Any, Any]]] = defaultdict(list)
        for runs in by_settings.values():
            for schemes in combinations(sorted(runs), 2):
                matched[schemes].append((runs[schemes[0]], runs[schemes[1]]))
        for (scheme, other), equal in sorted(matched.items()):
            cells: dict[tuple[Any, ...], list[float]] = defaultdict(list)
            for ours, theirs in equal:
                cell = ours.budget, ours.depth, ours.width, ours.layers, getattr(ours, SIZE)
                cells[cell].append(ours.loss - theirs.loss)
            if len(cells) < 2:
                continue
            means = {cell: fmean(of) for cell, of in cells.items()}
            away: dict[tuple[Any, ...], float] = {}
            for cell in cells:
                at = self.isoflop.optimum(scheme, cell[0], depth=cell[1])
                if (size := at.active_parameters) is not None:
                    away[cell] = log(cell[-1] / size)
            line = line_at_zero(
                [*away.values()], [means[cell] for cell in away], [len(cells[cell]) for cell in away]
            )
            slope, at_zero = line or (None, None)
            at_optima = (at_zero.value, at_zero.interval) if at_zero else (None, None)
            named = {
                "scheme": scheme,
                "other": other,
                "metric": "heldout_loss",
                "runs": len(equal),
                "lower_in": sum(mean < 0 for mean in means.values()),
                "per_efold_of_size": slope,
                **with_ends("at_optima", *at_optima),
                "same_processor": len({run.processor for pair in equal for run in pair}) < 2,
            }
            yield named, mean_difference([*means.values()], None)

    @cached_property
    def bits_per_byte(self) -> float:
        """Bits per byte of one nat per token, equal for all runs of one text and tokenizer."""
        return float(np.median([run.heldout_bits_per_byte / run.heldout_loss for run in self.rows]))


def _is_tested(pair: Pair) -> bool:
    return pair[1] is not None and pair[1].p is not None
