"""leaderboard.md of an isoFLOP suite: a table per budget with each scheme at its optimum, and at each
depth in a suite of several."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from modbench.analysis.frames import DENSE
from modbench.analysis.isoflop import HEADLINE
from modbench.errors import several
from modbench.records.names import at_depth
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.isoflop.tables import (
    details,
    law_text,
    laws,
    loss_ends,
    size_cell,
    sizes_text,
    told,
    verdict_text,
    with_interval,
)
from modbench.report.layers import idle_layers
from modbench.report.leaderboard.columns import OPTIMA, Column
from modbench.report.leaderboard.metric_cells import (
    PROCESSORS,
    difference_text,
    family_text,
    interim_text,
    untold_text,
)
from modbench.report.leaderboard.scheme import differing
from modbench.report.sections import Heading, Page, Part, suite_page
from modbench.report.table import Number, Table, escaped

_LAYERS = Column(
    "layers",
    "depth of the lowest of the interior optima, and the share of the draws of noise in which this "
    "depth is the best one. Each draw chooses the depth again, and the interval of the loss is widened "
    "by what the choice of the lowest hides",
)
_EQUAL_DEPTH = "minus dense at equal depth (nats/token)"
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


def isoflop_page(
    suite: IsoFlopSuite, downstream: Sequence[Part] = (), drawn: Collection[str] = ()
) -> Page:
    """The page. ``downstream``: its section on downstream tasks; ``drawn``: names of the files with
    figures."""
    interim = interim_text(suite.results[0].suite)
    tables: list[Part] = [*([interim] if interim else ()), _compared(suite)]
    if suite.has_curves:
        for budget in suite.budgets:
            tables += [Heading(f"{budget:.3g} training FLOPs"), *_optima(suite, budget)]
            tables += [_depths(suite, budget)] if suite.depths else []
        tables += _below_tables(suite)
    else:
        tables.append("No scheme has a learning rate yet, so there are no curves.")
    return suite_page(
        suite.results,
        tables,
        downstream=downstream,
        drawn=drawn,
        columns=_columns(suite),
        manual="isoflop",
        details=details(suite),
        notes=[*_notes(suite)],
    )


def _compared(suite: IsoFlopSuite) -> str:
    """The sentences on what the page compares."""
    depth = f" and depth (of {', '.join(map(str, suite.depths))} layers)" if suite.depths else ""
    text = (
        f"{several(len(suite.schemes), 'scheme')}, each at its own optimal size{depth}, at equal "
        f"training FLOPs: {several(len(suite.budgets), 'budget')}."
    )
    layers = suite.curves.runs["layers"].unique()
    if suite.depths or len(layers) != 1:
        return text
    return (
        f"{text} All shapes have {several(layers[0], 'layer')}, so a comparison here also compares "
        "the depth: at its own best depth, a scheme may stand elsewhere (`modbench docs depth`)."
    )


def _columns(suite: IsoFlopSuite) -> tuple[Column, ...]:
    """The columns of the tables of optima: with the depth, if the suite has several, and with seconds,
    if steps were timed."""
    columns = [of for of in OPTIMA if suite.is_timed or "seconds" not in of.heading]
    return (*columns[:2], *((_LAYERS,) if suite.depths else ()), *columns[2:])


def _optima(suite: IsoFlopSuite, budget: int) -> Iterable[Part]:
    """The table of the optima at the best depths, and sentences on it."""
    best, headings = suite.best(budget), [column.heading for column in _columns(suite)]
    cells = [_cells(suite, row) for row in best]
    yield Table(
        headings,
        [[of.get(heading, "-") for heading in headings] for of in cells],
        left=(0, 1, len(headings) - 1),
        caption=f"Schemes at their optima, {budget:.3g} training FLOPs",
    )
    yield from _reasons(suite, best)
    if why := dict.fromkeys(filter(None, (row.speed_up_seconds_missing_because for row in best))):
        command = f"modbench time {escaped(suite.results[0].suite['name'])}"
        yield f"No speed-up in seconds: {'; '.join(map(escaped, why))} (run: {command})."


def _depths(suite: IsoFlopSuite, budget: int) -> Table:
    """The table of the optima at each depth."""
    rows = [row for row in suite.rows.optima if (row.budget, row.fit) == (budget, HEADLINE)]
    rows.sort(key=lambda row: (row.scheme, row.depth))
    cells = [_cells(suite, row, at_depth=True) for row in rows]
    headings = ["scheme", "layers", OPTIMA[2].heading, _EQUAL_DEPTH]
    headings += ["active parameters", "width / layers", "verdict"]
    table = [[of.get(heading, "-") for heading in headings] for of in cells]
    return Table(headings, table, (0, 6), f"Optima at each depth, {budget:.3g} training FLOPs")


def _cells(suite: IsoFlopSuite, row: Any, *, at_depth: bool = False) -> dict[str, object]:
    """The cells of an optimum by heading: of the best depth, or as one of the rows of all depths."""
    low, high = (row.loss_low, row.loss_high) if at_depth else loss_ends(row)
    layers = None
    if row.loss is not None:
        share = "" if row.depth_share is None else f" ({row.depth_share:.0%} of draws)"
        layers = f"{row.depth}{share}"
    cells = {
        "group": (row.group or "-") if row.position else "not ranked",
        "scheme": row.scheme,
        "layers": row.depth if at_depth else layers,
        OPTIMA[2].heading: with_interval(row.loss, ".4f", low, high),
        OPTIMA[3].heading: _minus_dense(suite, row, None),
        _EQUAL_DEPTH: _minus_dense(suite, row, row.depth),
        OPTIMA[4].heading: _factor(row, ""),
        OPTIMA[5].heading: _factor(row, "_seconds"),
        "active parameters": size_cell(row),
        "width / layers": _aspect(suite, row),
        "verdict": "; ".join(filter(None, _verdict(suite, row, at_depth))),
    }
    return {heading: "-" if cell is None else cell for heading, cell in cells.items()}


def _verdict(suite: IsoFlopSuite, row: Any, at_depth: bool) -> Iterable[str]:
    """Phrases on the curve of an optimum and on its scheme."""
    depths = [
        of
        for of in suite.rows.optima
        if (of.scheme, of.budget, of.fit) == (row.scheme, row.budget, HEADLINE) and of.depth is not None
    ]
    if row.verdict is None:
        for of in [row] if at_depth or not depths else sorted(depths, key=lambda of: of.depth):
            because = of.curve_missing_because or sizes_text(of)
            yield because if at_depth or of.depth is None else f"{several(of.depth, 'layer')}: {because}"
        return
    yield verdict_text(row)
    if row.loss is None and at_depth:
        yield "no candidate for the best depth"
    if because := row.interval_missing_because:
        yield f"no interval: {because}"
    yield sizes_text(row)
    if not at_depth and depths:
        yield from _depth_remarks(row, depths)
    if row.learning_rate_verdict != "interior":
        yield f"learning rate: {row.learning_rate_verdict}"
    if not at_depth and (reason := suite.unranked.get(row.scheme)):
        yield f"not ranked: {reason}"
    if row.noise_floor is not None and (row.learning_rate_law_loses or 0.0) > row.noise_floor:
        worst = max(laws(suite, row.scheme, row.depth), key=lambda law: law.loses)
        text = law_text(suite, worst)
        yield f"the learning rate's law loses more than the noise floor ({text})"


def _depth_remarks(best: Any, depths: Sequence[Any]) -> Iterable[str]:
    """Phrases on the choice of the depth of ``best`` among ``depths``."""
    depths = sorted((of for of in depths if of.verdict), key=lambda of: of.depth)
    rest = [f"{several(of.depth, 'layer')} {of.verdict}" for of in depths if of.loss is None]
    if best.loss is None:
        yield f"no depth is a candidate: {', '.join(rest)}"
        return
    if rest:
        yield f"no candidate: {', '.join(rest)}"
    known = [of.depth for of in depths if of.loss is not None]
    tried = [of.depth for of in depths]
    for numbers, word in ((tried, "depth tried"), (known, "depth with an interior optimum")):
        if best.depth in (numbers[0], numbers[-1]):
            size = "smallest" if best.depth == numbers[0] else "largest"
            yield f"the {'only' if len(numbers) == 1 else size} {word}"
            return


def _factor(row: Any, unit: str) -> str | None:
    """A speed-up with its interval, ``?`` for an end beyond the dense model's budgets; without one if
    all of it lies beyond the bound."""
    names = (f"speed_up{unit}", f"speed_up{unit}_low", f"speed_up{unit}_high")
    factor, *interval = (getattr(row, name) for name in names)
    if factor is None:
        return None
    bound = row.speed_up_bound
    text = f"{bound or ''} {factor:.2f}".strip()
    if interval[0] is None or (bound and interval[0] == interval[1]):
        return Number(text, factor)
    low, high = (f"{end:.2f}" if 0 < end < inf else "?" for end in interval)
    return Number(f"{text} ({low} to {high})", factor)


def _aspect(suite: IsoFlopSuite, row: Any) -> str | None:
    """Width over layers of the size nearest to an optimum."""
    if row.loss is None or row.depth is None:
        return None
    curve = (row.scheme, row.depth, row.budget)
    points = (of for of in suite.rows.points if of.seeds and (of.scheme, of.depth, of.budget) == curve)
    nearest = min(points, key=lambda of: abs(of.active_parameters / row.active_parameters - 1))
    return f"{nearest.width / row.depth:.3g}"


def _minus_dense(suite: IsoFlopSuite, row: Any, depth: int | None) -> str | None:
    """The difference of an optimum to the dense model's, at ``depth`` or at the best depths."""
    pair = suite.to_dense.get((row.budget, row.scheme, depth))
    if pair is None:
        return None
    minus = told(pair)
    if not (pair.family or "").startswith("dense"):  # a verdict of a family that the suite states
        minus = replace(minus, verdict=None)
    return difference_text(minus, pair.same_processor)


def _reasons(suite: IsoFlopSuite, best: Sequence[Any]) -> Iterable[str]:
    """Sentences on schemes that are not ranked, and on comparisons that are missing or doubtful."""
    best = [row for row in best if row.verdict]
    dense = next((row for row in best if row.scheme == DENSE), None)
    edges = [row for row in best if row.learning_rate_verdict != "interior"]
    if edges:
        names = (escaped(at_depth(row.scheme, row.depth)) for row in edges)
        yield (
            f"Not ranked: {', '.join(names)}. The best learning rate is the first or the "
            "last of those tried, so another one may give a lower loss."
        )
    if dense in edges:
        yield "All comparisons rest on a dense model whose learning rate is at the edge."
    compared = [row for row in best if row.loss and row.scheme != DENSE]
    if compared and (dense is None or dense.loss is None):
        why = "it has no finished run" if dense is None else f"its curve is {dense.verdict}"
        yield f"No difference to {DENSE}: {why} at this budget."
    if any(row.speed_up is None for row in compared):
        dense_rows = (of for of in suite.rows.optima if (of.scheme, of.fit) == (DENSE, HEADLINE))
        why = "it has an interior optimum at fewer than two"
        if sum(of.best for of in dense_rows) > 1:
            why = "its loss rises between two"
        yield f"No speed-up over {DENSE}: {why} budgets."


def _below_tables(suite: IsoFlopSuite) -> Iterable[str]:
    """Sentences on the tables of all budgets: intervals, groups and verdicts."""
    tested = [pair for pair in suite.rows.pairs if pair.family]
    if not any(row.position for row in suite.rows.optima):
        yield _UNRANKED
    elif suite.curves.noise.pooled is None:
        yield _ONE_SEED
    else:
        yield f"{_INTERVALS} {suite.curves.noise.in_words()}"
        if any(row.group for row in suite.rows.optima):
            tests = sum(pair.family == "best" for pair in tested)
            yield _GROUPS.format(several(tests, "comparison"))
    for name in dict.fromkeys(pair.family for pair in tested):
        of = [pair for pair in tested if pair.family == name]
        if name != "best" and any(pair.verdict for pair in of):
            margin = of[0].margin
            within = f" *Equivalent*: within {margin:g} nats per token." if margin else ""
            yield family_text(name, len(of)) + within
    if untold := untold_text(map(told, tested)):
        yield untold
    if not all(of.same_processor for of in suite.rows.pairs if (of.other, of.depth) == (DENSE, None)):
        yield PROCESSORS
    if any(pair.depth for pair in tested):
        yield (
            "*Minus dense at equal depth*: both schemes at their optimal size of that depth, which need "
            "not be the best depth of either."
        )
    best = {(of.scheme, of.depth) for budget in suite.budgets for of in suite.best(budget) if of.verdict}
    verdicts = {(row.scheme, row.depth): row.learning_rate_verdict for row in suite.rows.optima}
    edges = sorted(place for place, of in verdicts.items() if of != "interior" and place not in best)
    if suite.depths and edges:
        names = ", ".join(escaped(at_depth(*place)) for place in edges)
        yield (
            "The best learning rate is the first or the last of those tried, or not chosen yet: "
            f"{names}. With another rate that depth may be better than it is here."
        )


def _notes(suite: IsoFlopSuite) -> Iterable[str]:
    if suite.depths and suite.has_curves:
        yield _fixed(suite)
    yield "FLOPs: convention `model`; active parameters are those of a token routed at every layer."
    yield (
        "Fit of the first table: a parabola in the logarithm of active parameters. Noise floor: twice "
        "the standard deviation of one run's loss over seeds; the difference of two runs has 1.4 times "
        "as much."
    )
    if suite.curves.optima["speed_up_seconds"].notna().any():
        yield (
            "Speed-up in seconds: the one in FLOPs times the dense model's seconds per FLOP over the "
            "scheme's, of training steps that `modbench time` measured, interpolated between the timed "
            "shapes. Its interval is that of the FLOPs and does not contain the spread of the times."
        )
    done = [result for result in suite.results if result.status == "ok"]
    runs = Counter(result.scheme for result in done)
    idle = Counter(result.scheme for result in done if idle_layers([result]))
    for scheme in sorted(idle):
        yield (
            f"In {idle[scheme]} of {several(runs[scheme], 'run')} of {escaped(scheme)} a routed layer "
            "adds next to nothing; the column note of leaderboard.csv names it."
        )
    yield (
        "All figures at full precision: optima.csv, differences.csv, learning_rates.csv and "
        "leaderboard.csv."
    )


def _fixed(suite: IsoFlopSuite) -> str:
    """The sentence on what differs between the shapes of all curves, and what is held fixed."""
    models = [result.model for result in suite.results if not suite.is_trial(result)]
    differ = [name for name in differing(models) if name not in ("width", "layers")]
    names = sorted(models[0].keys() - {*differ, "width", "layers"})
    fixed = ", ".join(f"{escaped(name)} {escaped(models[0][name])}" for name in names)
    aspects = [model["width"] / model["layers"] for model in models]
    follows = f", and {', '.join(differ)} with it" if differ else ""
    return (
        f"Depths: {', '.join(map(str, suite.depths))} layers, with a learning rate chosen at each. A "
        f"curve varies the width at a fixed depth{follows}; width over layers is {min(aspects):.3g} to "
        f"{max(aspects):.3g}. Held fixed in all shapes: {fixed}."
    )
