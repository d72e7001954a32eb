"""Parts of an isoFLOP suite's page on comparisons: what the verdicts are adjusted for, the scatter
around the curves, and the differences between any two schemes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from modbench.analysis.noise import Spread, pooled
from modbench.errors import several
from modbench.report.isoflop.pairs import Pair, at_optima, of_equal_runs, with_dense
from modbench.report.isoflop.sweep import HEADLINE, Sweep
from modbench.report.leaderboard.difference_cells import (
    PROCESSORS,
    difference_text,
    family_text,
    p_text,
    pair_table,
)
from modbench.report.sections import Heading, Part
from modbench.report.table import Table

_INTERVALS = (
    "In parentheses: 95 % intervals, from draws of the measured noise between seeds. Two intervals that "
    "overlap say nothing on a difference: noise that schemes share cancels in it."
)
_GROUPS = (
    "*Best*: the lowest loss. *Not separable*: the difference to it has a p above 0.05, adjusted by "
    "Holm's method for {} with the best scheme of each budget."
)
_ONE_SEED = (
    "No run was repeated, so the noise is not known: there are no intervals, and the order of the "
    "schemes is no claim that one is better than another."
)
_UNRANKED = (
    "No scheme can be ranked yet. The column verdict says why; the losses so far are under Details."
)


def below_tables(sweep: Sweep) -> Iterable[str]:
    """Sentences on the tables of all budgets: intervals, groups and verdicts."""
    lines = [line for budget in sweep.budgets for line in sweep.lines(budget)]
    if not any(line.position for line in lines):
        yield _UNRANKED
    elif sweep.analysis.noise.pooled is None:
        yield _ONE_SEED
    else:
        tests = sum(line.to_best is not None for line in lines)
        yield f"{_INTERVALS} {_GROUPS.format(several(tests, 'comparison'))}"
    if pairs := list(with_dense(sweep)):
        margin = f"*Equivalent*: within {sweep.margin:g} nats per token, the suite's margin."
        yield f"{family_text(len(pairs), 'the dense model, at all budgets,')} {margin}"
    if not all(line.same_processor for line in lines if line.difference):
        yield PROCESSORS


def scatter_section(sweep: Sweep) -> Iterable[Part]:
    """The scatter of the points around the curves of each budget, next to the noise between seeds."""
    noise = sweep.analysis.noise.pooled
    scatters: dict[tuple[int, ...], list[Spread]] = defaultdict(list)
    for at in sweep.analysis.by_depth:
        if at.fit == HEADLINE and at.scatter is not None:
            depth = (at.depth,) if at.depth is not None else ()
            scatters[int(at.budget), *depth].append(at.scatter)
    rows = []
    for (budget, *layers), of_curves in sorted(scatters.items()):
        around = pooled(of_curves)
        if around is not None:
            rows.append((f"{budget:.3g}", *layers, f"{around.sd:.4f}", around.freedom))
    if not rows:
        return
    yield Heading("Scatter around the curves", 3)
    heads = ("FLOPs", *(("layers",) if sweep.depths else ()))
    yield Table((*heads, "scatter of one run (nats/token)", "degrees of freedom"), rows)
    yield (
        "Standard deviation of the points around the parabolas, scaled to one run, all schemes "
        "together. It checks the noise at budgets with one seed: "
        + (f"between seeds it is {noise.sd:.4f} nats. " if noise else "no run was repeated. ")
        + "What a parabola misses of a curve adds to the scatter."
    )


def pair_section(sweep: Sweep) -> Iterable[Part]:
    """The tables of the differences between any two schemes."""
    dense, others = list(with_dense(sweep)), list(at_optima(sweep))
    if optima := [*dense, *others]:
        yield Heading("Differences between schemes", 3)
        yield (
            "At the optima, with the two-sided p of each difference and the adjusted one: for the "
            f"{several(len(dense), 'comparison')} with the dense model, and for the "
            f"{several(len(others), 'comparison')} of the other pairs."
        )
        budgets = [f"{pair.budget:.3g}" for pair in optima]
        pairs = [(p.scheme, p.other, p.difference, p.same_processor) for p in optima]
        yield pair_table((("FLOPs", budgets),), pairs, "nats/token").about("Differences at the optima")
    if equal := of_equal_runs(sweep):
        yield (
            "Runs of equal shape, budget, learning rate and seed that differ in their router only, all "
            "budgets together; a cell is one shape at one budget, its seeds averaged. In parentheses "
            "the 95 % t-interval of the mean of the cells. The mean hides a trend with size: *per size "
            "step* is the change of the difference from one size to the next larger one. The table "
            "compares schemes at the shapes that they share, not each at its best. The adjusted p is "
            f"for {several(len(equal), 'comparison')}."
        )
        means = ("scheme", "minus", "mean difference (nats/token)", "adjusted p", "per size step")
        table = Table((*means, "cells", "lower in"), [_equal_row(pair) for pair in equal], left=(0, 1))
        yield table.about("Differences at equal shapes")


def _equal_row(pair: Pair) -> Sequence[object]:
    difference = pair.difference
    return (
        pair.scheme,
        pair.other,
        difference_text(difference, pair.same_processor),
        p_text(difference.p_adjusted),
        None if pair.trend is None else f"{pair.trend:+z.4f}",
        difference.pairs,
        pair.lower,
    )
