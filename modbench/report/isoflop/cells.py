"""Cells of optima, of a suite's curves and of anyone's points, and their table by all fits."""

from collections.abc import Iterable, Sequence
from typing import Any

from modbench.analysis.difference import Difference
from modbench.errors import several
from modbench.records.names import at_depth
from modbench.report.leaderboard.metric_cells import si
from modbench.report.sections import Part
from modbench.report.table import Number, Table, escaped


def fits_table(rows: Iterable[Any], name: str = "scheme") -> list[dict[str, object]]:
    """The cells of a table of the optima ``rows``, whose groups are called ``name``, by heading."""
    return [
        {
            name: row.scheme,
            "FLOPs": f"{row.budget:.3g}",
            "sizes": row.sizes,
            "fit": row.fit,
            "verdict": verdict_text(row),
            "size (95 %)": size_cell(row),
            "tokens": with_interval(row.train_tokens, "si"),
            "loss (95 %)": with_interval(row.loss, ".4f", *loss_ends(row)),
        }
        for row in rows
    ]


def verdict_text(row: Any) -> str:
    """The verdict on a curve, with the share of the draws of noise that agree if not all do."""
    share = 1.0 if row.interior_share is None else row.interior_share
    if row.interval_missing_because or f"{100 * share:.3g}" == "100":
        return str(row.verdict)
    return f"interior in {100 * share:.3g} % of draws"


def loss_ends(row: Any) -> tuple[float | None, float | None]:
    """The interval of a loss, with the choice of the best depth where there was one."""
    if row.best_loss_low is not None:
        return row.best_loss_low, row.best_loss_high
    return row.loss_low, row.loss_high


def sizes_text(row: Any) -> str:
    """The number of sizes on a curve and the lost ones, such as "4 of 5 sizes, w60 diverged"; empty if
    the curve has all sizes. Older records don't state how many were planned."""
    planned = row.sizes_planned
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


def told(pair: Any) -> Difference:
    """The difference of a row of the frame of pairs."""
    return Difference(
        value=pair.value,
        interval=None if pair.low is None else (pair.low, pair.high),
        p=pair.p,
        untold=pair.no_verdict_because or "",
        p_adjusted=pair.p_adjusted,
        verdict=pair.verdict,
    )


#: Heading of `surface_parts`.
SURFACES = "Surfaces L(N, D) = E + A / N^alpha + B / D^beta"


def surface_parts(rows: Sequence[Any], name: str = "scheme") -> Iterable[Part]:
    """The table of the surfaces ``rows``, whose groups are called ``name``, and a sentence on those that
    ended at an edge."""
    digits = {"E": ".4f", "A": ".4g", "B": ".4g", "alpha": ".4f", "beta": ".4f"}
    cells = [
        {name: at_depth(row.scheme, row.depth), "points": row.points}
        | {term: f"{getattr(row, term):{form}}" for term, form in digits.items()}
        | {"mean Huber loss (1e-6)": f"{1e6 * row.huber:.1f}"}
        for row in rows
    ]
    if cells:
        yield Table.of(cells).about("Surfaces")
    if edges := [escaped(at_depth(row.scheme, row.depth)) for row in rows if row.at_edge]:
        yield (
            f"Not to be trusted: {', '.join(edges)}. An exponent lies at the edge of its range, or A or "
            "B is 0."
        )
