"""Tables in the details of an isoFLOP suite's page: sizes, scatter around the curves, all fits,
surfaces, differences between any two schemes, learning rates, what was not finished; and their cells."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from modbench.analysis.isoflop import FITS
from modbench.errors import several
from modbench.records.names import at_depth
from modbench.report.cells import difference_text, p_text, pair_table, stated_cells
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.table import Number, Table, si


def details(suite: IsoFlopSuite, budgets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Details of the page; ``budgets``: its part on each budget, in order."""
    lost = [result for result in suite.results if result.status != "ok"]
    lost.sort(key=lambda of: (of.scheme, of.budget, of.width, of.learning_rate, of.seed))
    sizes = [_sizes(suite, budget) for budget in suite.budgets] if suite.has_curves else []
    shown = zip(budgets, sizes, strict=False) if sizes else ((of, None) for of in budgets)
    surfaces = suite.rows.surfaces
    return {
        "budgets": [{**of, "sizes": table} for of, table in shown],
        "scatter": _scatter(suite),
        "fits": _fits(suite),
        "surfaces": surface_table(surfaces),
        "untrusted": [at_depth(row.scheme, row.depth) for row in surfaces if row.at_edge],
        "pairs": _pairs(suite),
        "equal": _equal(suite),
        "rates": _rates(suite),
        "lost": lost,
    }


def stated_optima_table(suite: IsoFlopSuite) -> Table | None:
    """The pairs that the suite states; None if it states none."""
    lines = []
    for pair in suite.rows.pairs if suite.results[0].suite["compare"] else ():
        if pair.family:
            layers = {"layers": str(pair.depth or "best")} if suite.depths else {}
            lines.append(stated_cells(pair._asdict(), FLOPs=f"{pair.budget:.3g}", **layers))
    left = (0, 1, 2, len(lines[0]) - 1) if lines else ()
    return Table.of(lines, left).about("Comparisons that the suite states") if lines else None


def _sizes(suite: IsoFlopSuite, budget: int) -> Table:
    """The table of the runs behind the curves of ``budget``."""
    rows = []
    for point in suite.rows.points:
        if point.budget != budget:
            continue
        done, number = point.seeds > 0, point.seeds + point.lost
        lost = f"{point.lost} {point.lost_as}" if number > 1 else point.lost_as
        loss = "-"
        if done:
            low, high = (point.loss_min, point.loss_max) if point.seeds > 1 else (None, None)
            loss = with_interval(point.loss, ".4f", low, high)
        shown = [loss] * done + [lost] * bool(point.lost)
        row = {
            "scheme": point.scheme,
            "size": f"{point.width} x {point.layers}",
            "active parameters": si(point.active_parameters, 3) if done else None,
            "learning rate": f"{point.learning_rate:g}",
            "steps": f"{point.train_steps:.0f}" if done else None,
            "budget spent": f"{100 * (point.train_flops / budget):.2f} %" if done else None,
            "seeds": point.seeds,
            "loss": Number(", ".join(shown), point.loss) if done else ", ".join(shown),
        }
        rows.append(row)
    return Table.of(rows, (0, 1)).about(f"Sizes at {budget:.3g} training FLOPs")


def _scatter(suite: IsoFlopSuite) -> Table | None:
    """The scatter of the points around the curves of each budget, next to the noise between seeds."""
    rows = [
        {
            "FLOPs": f"{row.budget:.3g}",
            **({"layers": row.depth} if suite.depths else {}),
            "scatter of one run (nats/token)": f"{row.scatter:.4f}",
            "degrees of freedom": row.degrees_of_freedom,
            "p": p_text(row.p),
            "parabola": "misfit" if row.misfit else "-",
        }
        for row in suite.rows.scatter
    ]
    return Table.of(rows, left=(len(rows[0]) - 1,)) if rows else None


def _fits(suite: IsoFlopSuite) -> Table:
    """The table of all fits, with further figures of the optima."""
    best = [row for budget in suite.budgets for fit in FITS for row in suite.best(budget, fit)]
    best = sorted((row for row in best if row.minimum), key=lambda row: (row.budget, row.scheme))
    rows = []
    for row in best:
        cells = {
            "scheme": row.scheme,
            "FLOPs": f"{row.budget:.3g}",
            "sizes": row.sizes,
            "fit": row.fit,
            "minimum": minimum_text(row),
            "size (95 %)": size_cell(row),
            "tokens": with_interval(row.train_tokens, "si"),
            "loss (95 %)": with_interval(row.loss, ".4f", *loss_ends(row)),
        }
        further = {
            "bits/byte": with_interval(row.bits_per_byte, ".4f"),
            "nominal forward FLOP/token": with_interval(row.forward_flops_per_token, "si"),
            "noise floor (nats)": with_interval(row.noise_floor, ".4f"),
        }
        layers = {"layers": row.depth if row.best else None} if suite.depths else {}
        rows.append(cells | layers | further)
    return Table.of(rows, left=(0, 3, 4)).about("Optima by three fits")


def _pairs(suite: IsoFlopSuite) -> Table | None:
    """The differences between any two schemes at their optima."""
    ranked = {(row.budget, row.scheme) for row in suite.rows.optima if row.position}
    shown: dict[tuple[Any, ...], Any] = {}
    for pair in sorted(suite.rows.pairs, key=lambda pair: (not pair.family, pair.family == "best")):
        both = {(pair.budget, pair.scheme), (pair.budget, pair.other)} <= ranked
        if pair.value is None:
            continue
        if pair.family or (pair.budget and pair.p is not None and (pair.depth or both)):
            shown.setdefault((pair.budget, pair.scheme, pair.other, pair.depth), pair)
    pairs = [pair._asdict() for pair in shown.values()]
    leading = [("FLOPs", [f"{pair['budget']:.3g}" for pair in pairs])]
    if suite.depths:
        leading.append(("layers", [str(pair["depth"] or "best") for pair in pairs]))
    return pair_table(pairs, *leading).about("Differences at the optima") if pairs else None


def _equal(suite: IsoFlopSuite) -> Table | None:
    """The differences between runs that differ in their router only."""
    equal = [_equal_cells(pair) for pair in suite.rows.pairs if pair.budget is None]
    return Table.of(equal, left=(0, 1)).about("Differences at equal shapes") if equal else None


def _equal_cells(pair: Any) -> dict[str, object]:
    slope, row = pair.per_efold_of_size, pair._asdict()
    at = {"value": pair.at_optima, "low": pair.at_optima_low, "high": pair.at_optima_high}
    at |= {"verdict": None, "no_verdict_because": None, "same_processor": True}
    return {
        "scheme": pair.scheme,
        "minus": pair.other,
        "mean difference (nats/token)": difference_text(row),
        "at the optima of the scheme": None if pair.at_optima is None else difference_text(at),
        "per e-fold of the size": None if slope is None else f"{slope:+z.4f}",
        "cells": pair.pairs,
        "lower in": pair.lower_in,
    }


def _rates(suite: IsoFlopSuite) -> Table:
    places: dict[tuple[str, int | None], list[Any]] = defaultdict(list)
    for row in suite.rows.rates:
        places[row.scheme, row.depth].append(row)
    rows = []
    for place, tried in places.items():
        first, best = tried[0], [row for row in tried if row.chosen]
        losses = (
            f"{row.learning_rate:g}: {row.status if row.loss is None else f'{row.loss:.4f}'}"
            for row in tried
            if row.learning_rate is not None
        )
        stated = first.exponent_stated
        refined = "" if first.exponent == stated else f" (refined from {stated:g})"
        checks = "; ".join(law_text(suite, law) for law in laws(suite, *place))
        if before := "; ".join(law_text(suite, law) for law in laws(suite, *place, valid=False)):
            checks = f"before it was refined: {before}" + f"; then {checks}" * bool(checks)
        row = {
            "scheme": at_depth(*place),
            "tried at": f"width {first.width}, {first.budget:.3g} FLOPs",
            "loss by learning rate": ", ".join(losses),
            "chosen": f"{best[0].learning_rate:g}" if best else "-",
            "minimum": first.minimum,
            "law": f"width^{first.exponent:g}{refined}",
            "check of the law": checks or "not checked",
        }
        rows.append(row)
    return Table.of(rows, left=range(7)).about("Learning rates tried")


def laws(suite: IsoFlopSuite, scheme: str, depth: int | None, *, valid: bool = True) -> list[Any]:
    """The checks of a law, or of the one that the suite states, before it was refined."""
    laws = suite.rows.laws
    return [law for law in laws if (law.scheme, law.depth, law.valid) == (scheme, depth, valid)]


def law_text(suite: IsoFlopSuite, law: Any) -> str:
    middle = {(rate.scheme, rate.depth): rate.budget for rate in suite.rows.rates}
    place = f"width {law.width}"
    if law.budget != middle[law.scheme, law.depth]:
        place += f" at {law.budget:g} FLOPs"
    if law.best_learning_rate == law.learning_rate:
        return f"{place}: {law.learning_rate:g} by the law, which is best"
    return (
        f"{place}: {law.learning_rate:g} by the law, {law.best_learning_rate:g} is better by "
        f"{law.loses:.4f} nats"
    )


def minimum_text(row: Any) -> str:
    """Where a curve has its minimum, with the share of bootstrap samples that agree if not all do."""
    share = 1.0 if row.interior_share is None else row.interior_share
    if row.interval_missing_because or f"{100 * share:.3g}" == "100":
        return str(row.minimum)
    return f"interior ({100 * share:.3g} %)"


def loss_ends(row: Any) -> tuple[float | None, float | None]:
    """The interval of a loss, with the choice of the best depth where there was one."""
    if row.best_loss_low is not None:
        return row.best_loss_low, row.best_loss_high
    return row.loss_low, row.loss_high


def sizes_text(row: Any) -> str:
    """The number of sizes on a curve and the lost ones, such as "4 of 5 sizes, w60 diverged"; empty if
    the curve has all sizes. Older records don't state how many were planned."""
    planned = row.sizes_planned
    if not row.sizes and not row.sizes_lost:
        return "no run finished"
    if row.sizes == planned and not row.sizes_lost:
        return ""
    number = f"{row.sizes} of {several(planned, 'size')}" if planned else several(row.sizes, "size")
    return ", ".join(filter(None, (number, row.sizes_lost)))


def size_cell(row: Any) -> str:
    """The size of an optimum with its interval."""
    ends = row.active_parameters_low, row.active_parameters_high
    return with_interval(row.active_parameters, "si", *ends)


def with_interval(
    value: float | None, form: str, low: float | None = None, high: float | None = None
) -> str:
    """``value`` with its interval; ``form``: si or one of Python's."""

    def text(number: float) -> str:
        return si(number, 3) if form == "si" else f"{number:{form}}"

    if value is None:
        return "-"
    between = "" if low is None or high is None else f" ({text(low)} to {text(high)})"
    return Number(text(value) + between, value)


def surface_table(rows: Sequence[Any]) -> Table | None:
    """The table of the surfaces ``rows``; None without any. The exponent of a term that is 0 is
    undetermined, and so missing."""
    digits = {"E": ".4f", "A": ".4g", "B": ".4g", "alpha": ".4f", "beta": ".4f"}
    factors = {"alpha": "A", "beta": "B"}
    cells = [
        {"scheme": at_depth(row.scheme, row.depth), "points": row.points}
        | {
            term: f"{getattr(row, term):{form}}"
            if term not in factors or getattr(row, factors[term])
            else None
            for term, form in digits.items()
        }
        | {"mean Huber loss (1e-6)": f"{1e6 * row.huber:.1f}"}
        for row in rows
    ]
    return Table.of(cells).about("Surfaces") if cells else None
