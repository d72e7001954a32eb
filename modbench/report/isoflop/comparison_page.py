"""Parts of an isoFLOP suite's page on comparisons: what the verdicts are adjusted for, the scatter
around the curves, and the differences between any two schemes."""

from collections.abc import Iterable, Sequence

from modbench.analysis.pairs import pair_row
from modbench.errors import several
from modbench.report.isoflop.pairs import Pair, of_equal_runs, other_pairs
from modbench.report.isoflop.sweep import Sweep
from modbench.report.leaderboard.metric_cells import (
    PROCESSORS,
    difference_text,
    family_text,
    p_text,
    pair_table,
    untold_text,
)
from modbench.report.sections import Heading, Part
from modbench.report.table import Table

_INTERVALS = (
    "In parentheses: 95 % intervals. Those of losses and differences are Student's t of the noise "
    "between seeds; where a depth was chosen, and for sizes and speed-ups, they come from draws of it."
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


def below_tables(sweep: Sweep, tested: Sequence[Pair]) -> Iterable[str]:
    """Sentences on the tables of all budgets: intervals, groups and verdicts. ``tested``: see
    `tested_pairs`."""
    lines = [line for budget in sweep.budgets for line in sweep.lines(budget)]
    if not any(line.position for line in lines):
        yield _UNRANKED
    elif sweep.analysis.noise.pooled is None:
        yield _ONE_SEED
    else:
        yield f"{_INTERVALS} {sweep.analysis.noise.in_words()}"
        if any(line.group for line in lines):
            tests = sum(line.to_best is not None for line in lines)
            yield _GROUPS.format(several(tests, "comparison"))
    for name in dict.fromkeys(pair.family for pair in tested):
        of = [pair for pair in tested if pair.family == name]
        if name != "best" and any(pair.difference.verdict for pair in of):
            margin = of[0].margin
            within = f" *Equivalent*: within {margin:g} nats per token." if margin else ""
            yield family_text(name, len(of)) + within
    if untold := untold_text(pair_row({}, pair.difference) for pair in tested):
        yield untold
    if not all(line.same_processor for line in lines if line.difference):
        yield PROCESSORS


def scatter_section(sweep: Sweep) -> Iterable[Part]:
    """The scatter of the points around the curves of each budget, next to the noise between seeds."""
    misfits = sweep.analysis.misfits
    if not misfits:
        return
    rows = [
        (
            f"{budget:.3g}",
            *((depth,) if sweep.depths else ()),
            f"{misfit.scatter.sd:.4f}",
            misfit.scatter.freedom,
            p_text(misfit.p),
            "misfit" if misfit.is_found else "-",
        )
        for (depth, budget), misfit in sorted(misfits.items(), key=lambda of: (of[0][1], of[0][0] or 0))
    ]
    yield Heading("Scatter around the curves", 3)
    heads = ("FLOPs", *(("layers",) if sweep.depths else ()))
    heads += ("scatter of one run (nats/token)", "degrees of freedom", "p", "parabola")
    yield Table(heads, rows, left=(len(heads) - 1,))
    yield (
        "Standard deviation of the points around the parabolas, scaled to one run, all schemes "
        "together, and the F test that it is as large as the noise between seeds. Below a p of 0.05 the "
        "parabola misses the curve (*misfit*): the scatter then takes the place of the noise in all "
        "intervals of these curves."
    )


def pair_section(sweep: Sweep, tested: Sequence[Pair]) -> Iterable[Part]:
    """The tables of the differences between any two schemes."""
    seen = {
        (pair.budget, pair.scheme, pair.other, pair.depth) for pair in tested if pair.family != "best"
    }
    best = [pair for pair in tested if (pair.budget, pair.scheme, pair.other, pair.depth) not in seen]
    shown = [*(pair for pair in tested if pair.family != "best"), *best, *other_pairs(sweep)]
    if shown:
        yield Heading("Differences between schemes", 3)
        yield (
            "At the optima, with the two-sided p of each difference. The adjusted one and a verdict "
            "have those that belong to a family of comparisons; the others are not tested."
        )
        leading = [("FLOPs", [f"{pair.budget:.3g}" for pair in shown])]
        if sweep.depths:
            leading.append(("layers", [str(pair.depth or "best") for pair in shown]))
        pairs = [
            pair_row(
                {"scheme": p.scheme, "other": p.other, "same_processor": p.same_processor}, p.difference
            )
            for p in shown
        ]
        yield pair_table(leading, pairs, "nats/token").about("Differences at the optima")
    if equal := of_equal_runs(sweep):
        yield (
            "Runs of equal shape, budget, learning rate and seed that differ in their router only, all "
            "budgets together; a cell is one shape at one budget, its seeds averaged, with the 95 % "
            "t-interval of independent cells. The mean depends on which sizes the grid has, so it is "
            "not tested. *At the optima*: the value at the optimal sizes of the first scheme, by a line "
            "over the logarithm of the size, whose slope is *per e-fold*."
        )
        means = ("scheme", "minus", "mean difference (nats/token)", "at the optima of the scheme")
        heads = (*means, "per e-fold of the size", "cells", "lower in")
        table = Table(heads, [_equal_row(pair) for pair in equal], left=(0, 1))
        yield table.about("Differences at equal shapes")


def _equal_row(pair: Pair) -> Sequence[object]:
    difference = pair.difference
    return (
        pair.scheme,
        pair.other,
        difference_text(pair_row({"same_processor": pair.same_processor}, difference)),
        None
        if pair.at_optimum is None
        else difference_text(pair_row({"same_processor": True}, pair.at_optimum)),
        None if pair.slope is None else f"{pair.slope:+z.4f}",
        difference.pairs,
        pair.lower,
    )
