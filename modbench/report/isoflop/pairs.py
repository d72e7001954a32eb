"""Differences between any two schemes of an isoFLOP sweep: at their optima, and of runs that differ in
their router only, such as those of a learned router and its random control."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from modbench.analysis.comparison import Difference, difference, mean_difference
from modbench.records.record import canonical_json
from modbench.report.isoflop.sweep import HEADLINE, Sweep


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Loss of ``scheme`` minus that of ``other``: at the optima of ``budget`` or, without one, the mean
    over ``runs`` pairs of runs with equal settings, ``lower`` of them with a lower loss."""

    scheme: str
    other: str
    found: Difference
    budget: int | None = None
    runs: int | None = None
    lower: int | None = None


def at_optima(sweep: Sweep) -> Iterator[Pair]:
    """All pairs of comparable schemes with an optimum and an interval; at each budget, the scheme with
    the lower loss first."""
    for budget in sweep.budgets:
        names = [line.optimum.scheme for line in sweep.lines(budget) if line.optimum.loss is not None]
        names = [name for name in names if _is_comparable(sweep, name)]
        names.sort(key=lambda name: sweep.analysis.optimum(name, budget, HEADLINE).loss or 0.0)
        for scheme, other in combinations(names, 2):
            found = difference(sweep.analysis, scheme, other, budget, HEADLINE, sweep.margin)
            if found is not None:
                yield Pair(scheme=scheme, other=other, found=found, budget=budget)


def of_equal_runs(sweep: Sweep) -> Iterator[Pair]:
    """All pairs of comparable schemes with two or more pairs of runs on their curves that agree in seed,
    shape, budget, learning rate and all else but the router."""
    losses: dict[str, dict[str, float]] = defaultdict(dict)
    for record in sweep.curve_records():
        if _is_comparable(sweep, scheme := record.scheme):
            settings = canonical_json({**record.record.run, "router": None})
            losses[settings][scheme] = record.metrics["heldout_loss"]
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for runs in losses.values():
        for scheme, other in combinations(sorted(runs), 2):
            pairs[scheme, other].append(runs[scheme] - runs[other])
    for (scheme, other), found in sorted(pairs.items()):
        if len(found) > 1:
            yield Pair(
                scheme=scheme,
                other=other,
                found=mean_difference(found, sweep.margin),
                runs=len(found),
                lower=sum(one < 0 for one in found),
            )


def _is_comparable(sweep: Sweep, scheme: str) -> bool:
    """Return True if ``scheme`` may be ranked: it passes the audit, and its learning rate is not at the
    edge."""
    return scheme not in sweep.unranked and sweep.is_interior(scheme)
