"""Parts of an isoFLOP suite's page on depth, in a suite with curves of several depths: the best one of
each scheme, all of them next to each other, and what is held fixed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modbench.analysis.difference import Interval
from modbench.analysis.isoflop import Optimum
from modbench.analysis.pairs import pair_row
from modbench.errors import several
from modbench.records.names import at_depth
from modbench.records.result import Place
from modbench.report.frame import differing
from modbench.report.isoflop.pairs import Pair
from modbench.report.isoflop.sweep import DENSE, HEADLINE, Sweep
from modbench.report.leaderboard.columns import OPTIMA, Column
from modbench.report.leaderboard.metric_cells import difference_text, si
from modbench.report.table import Number, Table, escaped

_LAYERS = Column(
    "layers",
    "depth of the lowest of the interior optima, and the share of the draws of noise in which this "
    "depth is the best one. Each draw chooses the depth again, and the interval of the loss is widened "
    "by what the choice of the lowest hides",
)
_HEADINGS = (
    "scheme",
    "layers",
    "loss at the optimum (nats/token)",
    "minus dense at equal depth (nats/token)",
    "active parameters",
    "width / layers",
    "verdict",
)


def columns_of(sweep: Sweep) -> tuple[Column, ...]:
    """The columns of the tables of optima: with the depth, if the suite has several, and with seconds,
    if steps were timed."""
    columns = [of for of in OPTIMA if sweep.times.measured or "seconds" not in of.heading]
    return (*columns[:2], *((_LAYERS,) if sweep.depths else ()), *columns[2:])


def layers_cell(optimum: Optimum) -> str:
    """The best depth with its share of the draws; a dash without an interior optimum."""
    if optimum.loss is None:
        return "-"
    share = "" if optimum.depth_share is None else f" ({optimum.depth_share:.0%} of draws)"
    return f"{optimum.depth}{share}"


def depth_remarks(sweep: Sweep, best: Optimum) -> Iterable[str]:
    """Phrases on the choice of the depth of ``best``, for its verdict."""
    optima = _by_depth(sweep, best.scheme, best.budget)
    rest = [f"{several(at.depth or 0, 'layer')} {at.verdict}" for at in optima if at.loss is None]
    if best.loss is None:
        yield f"no depth is a candidate: {', '.join(rest)}"
        return
    if rest:
        yield f"no candidate: {', '.join(rest)}"
    tried = sorted(at.depth or 0 for at in optima)
    known = sorted(at.depth or 0 for at in optima if at.loss is not None)
    for depths, word in ((tried, "depth tried"), (known, "depth with an interior optimum")):
        if len(depths) == 1:
            yield f"the only {word}"
        elif best.depth in (depths[0], depths[-1]):
            yield f"the {'smallest' if best.depth == depths[0] else 'largest'} {word}"
        else:
            continue
        return


def depth_table(sweep: Sweep, budget: int, pairs: Sequence[Pair]) -> Table:
    """The optimum of each scheme at each depth. ``pairs``: `tested_pairs`."""
    minus: dict[Place, str] = {
        (pair.scheme, pair.depth): difference_text(
            pair_row({"same_processor": pair.same_processor}, pair.difference)
        )
        for pair in pairs
        if pair.budget == budget and pair.other == DENSE and pair.depth
    }
    missing = sweep.without_curve(budget)
    rows = []
    for place in sweep.rates:
        scheme, depth = place
        optimum = sweep.optimum(scheme, budget, HEADLINE, depth)
        if optimum is None:
            rows.append((scheme, depth, *"----", missing.get(place, "")))
            continue
        verdict = [str(optimum.verdict)]
        if optimum.loss is None:
            verdict.append("no candidate for the best depth")
        elif optimum.void:
            verdict.append(f"no interval: {optimum.void}")
        if not sweep.is_interior(place):
            verdict.append(f"learning rate: {sweep.rates[place].choice.verdict}")
        verdict.append(sweep.sizes(place, budget))
        if check := sweep.law_fails(place):
            verdict.append(f"the learning rate's law loses more than the noise floor ({check})")
        rows.append(
            (
                scheme,
                depth,
                with_interval(optimum.loss, optimum.loss_interval, ".4f"),
                minus.get(place, "-"),
                with_interval(optimum.size, optimum.size_interval, "si"),
                _aspect(sweep, optimum),
                "; ".join(filter(None, verdict)),
            )
        )
    caption = f"Optima at each depth, {budget:.3g} training FLOPs"
    return Table(_HEADINGS, rows, left=(0, 6), caption=caption)


def below_depths(sweep: Sweep, pairs: Sequence[Pair]) -> Iterable[str]:
    """Sentences on the tables of all depths."""
    if any(pair.depth for pair in pairs):
        yield (
            "*Minus dense at equal depth*: both schemes at their optimal size of that depth, which need "
            "not be the best depth of either."
        )
    best = {line.optimum.place for budget in sweep.budgets for line in sweep.lines(budget)}
    edges = [place for place in sweep.rates if not sweep.is_interior(place) and place not in best]
    if edges:
        names = ", ".join(escaped(at_depth(*place)) for place in edges)
        yield (
            "The best learning rate is the first or the last of those tried, or not chosen yet: "
            f"{names}. With another rate that depth may be better than it is here."
        )


def fixed_note(sweep: Sweep) -> str:
    """The sentence on what differs between the shapes of all curves, and what is held fixed."""
    models = [record.model for record in sweep.points]
    differ = [name for name in differing(models) if name not in ("width", "layers")]
    first: Mapping[str, Any] = models[0]
    names = sorted(first.keys() - {*differ, "width", "layers"})
    fixed = [f"{name} {first[name]}" for name in names]
    aspects = [model["width"] / model["layers"] for model in models]
    follows = f", and {', '.join(differ)} with it" if differ else ""
    return (
        f"Depths: {', '.join(map(str, sweep.depths))} layers, with a learning rate chosen at each. A "
        f"curve varies the width at a fixed depth{follows}; width over layers is {min(aspects):.3g} to "
        f"{max(aspects):.3g}. Held fixed in all shapes: {', '.join(map(escaped, fixed))}."
    )


def _by_depth(sweep: Sweep, scheme: str, budget: float) -> list[Optimum]:
    """The optima of ``scheme`` at each depth that has a curve."""
    at_budget = (sweep.optimum(scheme, budget, HEADLINE, depth) for depth in sweep.depths)
    return [optimum for optimum in at_budget if optimum is not None]


def _aspect(sweep: Sweep, optimum: Optimum) -> str:
    """Width over layers of the size nearest to ``optimum``."""
    if optimum.size is None or optimum.depth is None:
        return "-"
    size = optimum.size
    records = (
        record
        for record in sweep.curve_records()
        if (record.place, record.budget) == (optimum.place, optimum.budget)
    )
    nearest = min(records, key=lambda record: abs(record.metrics["active_parameters"] / size - 1))
    return f"{nearest.width / optimum.depth:.3g}"


def with_interval(value: float | None, interval: Interval | None, form: str) -> str:
    """``value`` with its interval; ``form``: si or one of Python's."""

    def text(number: float) -> str:
        return si(number, 3) if form == "si" else f"{number:{form}}"

    if value is None:
        return "-"
    between = f" ({text(interval[0])} to {text(interval[1])})" if interval else ""
    return Number(text(value) + between, value)
