"""The leaderboard.md of an isoFLOP suite: a table per budget with each scheme at its optimum, and
at each depth in a suite of several. The words are in ``pages/isoflop.md.j2``."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from math import inf
from typing import Any

from modbench.analysis.frames import DENSE
from modbench.analysis.isoflop import HEADLINE
from modbench.errors import several
from modbench.records.names import at_depth
from modbench.report.audited import even_gates, idle_layers
from modbench.report.cells import difference_text
from modbench.report.downstream import Section
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.isoflop.tables import (
    details,
    law_text,
    laws,
    loss_ends,
    minimum_text,
    size_cell,
    sizes_text,
    stated_optima_table,
    with_interval,
)
from modbench.report.leaderboard import figures_among, margins_in_words, origin_of, suites_of
from modbench.report.markdown import Page, page
from modbench.report.runs import differing
from modbench.report.table import Number, Table

#: Columns of the first tables; docs/columns.md explains them.
_LOSS, _MINUS = "loss at the optimum (nats/token)", "minus dense (nats/token)"
_SPEED_UP = "speed-up at equal loss (FLOPs)"
_EQUAL_DEPTH = "minus dense at equal depth (nats/token)"


def isoflop_page(
    suite: IsoFlopSuite, downstream: Section | None = None, drawn: Collection[str] = ()
) -> Page:
    """The page. ``downstream``: its section on downstream tasks; ``drawn``: names of the files with
    figures."""
    results, optima = suite.results, suite.rows.optima
    tested = [pair for pair in suite.rows.pairs if pair.family and pair.value is not None]
    noise = suite.curves.noise
    layers = suite.curves.runs["layers"].unique()
    told = [(pair.family, pair.margin) for pair in tested if pair.family != "best" and pair.verdict]
    done = [result for result in results if result.status == "ok"]
    runs = Counter(result.scheme for result in done)
    remarked = (
        (
            "a routed layer adds next to nothing",
            Counter(of.scheme for of in done if idle_layers([of.layers])),
        ),
        (
            "gates of a layer hardly vary",
            Counter(of.scheme for of in done if even_gates([(of.routing, of.layers)])),
        ),
    )
    return page(
        "isoflop",
        suites=suites_of(results),
        suite=results[0].suite,
        stated=stated_optima_table(suite),
        schemes=len(suite.schemes),
        depths=suite.depths,
        layers=int(layers[0]) if not suite.depths and len(layers) == 1 else None,
        dense=DENSE,
        has_curves=suite.has_curves,
        ranked=any(row.position for row in optima),
        noise=noise.in_words() if noise.pooled else "",
        groups=any(row.group for row in optima),
        families=margins_in_words(told),
        tests={"best": 0, **Counter(pair.family for pair in tested)},
        untold=[*dict.fromkeys(pair.no_verdict_because for pair in tested)],
        mixed=not all(of.same_processor for of in suite.to_dense.values() if of.depth is None),
        at_depth=any(pair.depth for pair in tested),
        edges=_other_edges(suite),
        costly_laws=_costly_laws(suite),
        sizes=[of.active_parameters for of in suite.rows.points if of.active_parameters],
        seeds=[of.seeds for of in suite.rows.points if of.seeds],
        downstream=downstream or {"compared": ()},
        figures=figures_among(drawn, suite.curves.pairs),
        remarks=[
            (scheme, number, runs[scheme], words)
            for words, schemes in remarked
            for scheme, number in sorted(schemes.items())
        ],
        origin=origin_of(results),
        **details(suite, [_at_budget(suite, budget) for budget in suite.budgets]),
        **(_shapes(suite) if suite.depths else {}),
    )


def _at_budget(suite: IsoFlopSuite, budget: int) -> dict[str, Any]:
    """Part of the page on ``budget``: the table of the optima, missing and doubtful values."""
    optima = suite.best(budget)
    headings = ["group", "scheme", *["layers"] * bool(suite.depths), "seeds", _LOSS, _MINUS, _SPEED_UP]
    headings += ["active parameters", "minimum"]
    cells = [_cells(suite, row) for row in optima]
    table = Table(
        headings,
        [[of.get(heading, "-") for heading in headings] for of in cells],
        left=(0, 1, len(headings) - 1),
        caption=f"Schemes at their optima, {budget:.3g} training FLOPs",
    )
    best = [row for row in optima if row.minimum]
    dense = next((row for row in best if row.scheme == DENSE), None)
    edges = [row for row in best if row.learning_rate_minimum != "interior"]
    compared = [row for row in best if row.loss and row.scheme != DENSE]
    no_dense = no_speed_up = ""
    if compared and (dense is None or dense.loss is None):
        no_dense = "it has no finished run" if dense is None else f"its curve is {dense.minimum}"
    if any(row.speed_up is None for row in compared):
        dense_rows = (of for of in suite.rows.optima if (of.scheme, of.fit) == (DENSE, HEADLINE))
        falls = sum(bool(of.best) for of in dense_rows) > 1
        no_speed_up = "its loss rises between two" if falls else ""
        no_speed_up = no_speed_up or "it has an interior optimum at fewer than two"
    return {
        "budget": f"{budget:.3g}",
        "table": table,
        "edges": [at_depth(row.scheme, row.depth) for row in edges],
        "dense_at_edge": dense in edges,
        "no_dense": no_dense,
        "no_speed_up": no_speed_up,
        "depths": _depths(suite, budget) if suite.depths else None,
    }


def _other_edges(suite: IsoFlopSuite) -> list[str]:
    """The schemes and depths whose learning rate is at an edge, without those of the best depths."""
    best = {(of.scheme, of.depth) for budget in suite.budgets for of in suite.best(budget) if of.minimum}
    verdicts = {(row.scheme, row.depth): row.learning_rate_minimum for row in suite.rows.optima}
    edges = sorted(place for place, of in verdicts.items() if of != "interior" and place not in best)
    return [at_depth(*place) for place in edges] if suite.depths else []


def _costly_laws(suite: IsoFlopSuite) -> list[tuple[str, str]]:
    """Scheme and check of each law of learning rates that loses more than the noise floor."""
    laws_of = {}
    for row in suite.rows.optima:
        if row.noise_floor is not None and (row.learning_rate_law_loses or 0.0) > row.noise_floor:
            worst = max(laws(suite, row.scheme, row.depth), key=lambda law: law.loses)
            laws_of[at_depth(row.scheme, row.depth)] = law_text(suite, worst)
    return [*laws_of.items()]


def _shapes(suite: IsoFlopSuite) -> dict[str, Any]:
    """Sizes that differ between the shapes of all curves, and those held fixed."""
    models = [result.model for result in suite.results if result.key in suite.on_curve]
    varied = [name for name in differing(models) if name not in ("width", "layers")]
    fixed = models[0].keys() - {*varied, "width", "layers"} if models else ()
    return {
        "varied": varied,
        "fixed": {name: models[0][name] for name in fixed},
        "aspects": [model["width"] / model["layers"] for model in models],
    }


def _depths(suite: IsoFlopSuite, budget: int) -> Table:
    """The table of the optima at each depth."""
    rows = [row for row in suite.rows.optima if (row.budget, row.fit) == (budget, HEADLINE)]
    rows.sort(key=lambda row: (row.scheme, row.depth))
    cells = [_cells(suite, row, at_depth=True) for row in rows]
    headings = ["scheme", "layers", "seeds", _LOSS, _EQUAL_DEPTH]
    headings += ["active parameters", "width / layers", "minimum"]
    table = [[of.get(heading, "-") for heading in headings] for of in cells]
    return Table(headings, table, (0, 7), f"Optima at each depth, {budget:.3g} training FLOPs")


def _cells(suite: IsoFlopSuite, row: Any, *, at_depth: bool = False) -> dict[str, object]:
    """The cells of an optimum by heading: of the best depth, or as one of the rows of all depths."""
    low, high = (row.loss_low, row.loss_high) if at_depth else loss_ends(row)
    layers = None
    told = "worse than best" if any(of.group for of in suite.best(row.budget)) else "-"
    if row.loss is not None:
        share = "" if row.depth_share is None else f" ({100 * row.depth_share:.0f} %)"
        layers = f"{row.depth}{share}"
    cells = {
        "group": (row.group or told) if row.position else "not ranked",
        "scheme": row.scheme,
        "layers": row.depth if at_depth else layers,
        "seeds": _seeds(suite, row),
        _LOSS: with_interval(row.loss, ".3f", low, high),
        _MINUS: _minus_dense(suite, row, None),
        _EQUAL_DEPTH: _minus_dense(suite, row, row.depth),
        _SPEED_UP: _factor(row),
        "active parameters": size_cell(row),
        "width / layers": _aspect(suite, row),
        "minimum": "; ".join(filter(None, _minimum(suite, row, at_depth))),
    }
    return {heading: "-" if cell is None else cell for heading, cell in cells.items()}


def _seeds(suite: IsoFlopSuite, row: Any) -> str:
    """The number of seeds of a size of the curve of an optimum."""
    curve = (row.scheme, row.depth, row.budget)
    points = (of for of in suite.rows.points if (of.scheme, of.depth, of.budget) == curve)
    numbers = sorted({of.seeds for of in points if of.seeds})
    return " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1])))) if numbers else "-"


def _minimum(suite: IsoFlopSuite, row: Any, at_depth: bool) -> Iterable[str]:
    """Phrases on the curve of an optimum and on its scheme."""
    depths = [
        of
        for of in suite.rows.optima
        if (of.scheme, of.budget, of.fit) == (row.scheme, row.budget, HEADLINE) and of.depth is not None
    ]
    if row.minimum is None:
        for of in [row] if at_depth or not depths else sorted(depths, key=lambda of: of.depth):
            because = of.curve_missing_because or sizes_text(of)
            yield because if at_depth or of.depth is None else f"{several(of.depth, 'layer')}: {because}"
        return
    yield minimum_text(row)
    if row.loss is None and at_depth:
        yield "no candidate for the best depth"
    if because := row.interval_missing_because:
        yield f"no interval: {because}"
    yield sizes_text(row)
    if not at_depth and depths:
        yield from _depth_remarks(row, depths)
    if row.learning_rate_minimum != "interior":
        yield f"learning rate: {row.learning_rate_minimum}"
    if not at_depth and (reason := suite.unranked.get(row.scheme)):
        yield f"not ranked: {reason}"


def _depth_remarks(best: Any, depths: Sequence[Any]) -> Iterable[str]:
    """Phrases on the choice of the depth of ``best`` among ``depths``."""
    depths = sorted((of for of in depths if of.minimum), key=lambda of: of.depth)
    rest = [f"{several(of.depth, 'layer')} {of.minimum}" for of in depths if of.loss is None]
    if best.loss is None:
        yield f"no depth is a candidate: {', '.join(rest)}"
        return
    if rest:
        yield f"no candidate: {', '.join(rest)}"
    known = [of.depth for of in depths if of.loss is not None]
    tried = [of.depth for of in depths]
    for numbers, word in (
        (tried, "depth tried with this scheme"),
        (known, "depth with an interior optimum"),
    ):
        if best.depth in (numbers[0], numbers[-1]):
            size = "smallest" if best.depth == numbers[0] else "largest"
            yield f"{'only' if len(numbers) == 1 else size} {word}"
            return


def _factor(row: Any) -> str | None:
    """A speed-up with its interval, ``?`` for an end beyond the dense model's budgets; without one if
    all of it lies beyond the bound."""
    factor, interval = row.speed_up, (row.speed_up_low, row.speed_up_high)
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
    stated = not (pair.family or "").startswith("dense")  # a verdict of a family of the suite's
    return difference_text(pair._asdict() | ({"verdict": None} if stated else {}))
