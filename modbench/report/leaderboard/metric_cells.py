"""Cells of tables: metrics of a row and pairs of rows, as text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modbench.analysis.difference import FEW_SEEDS, INTERIM, MISFIT
from modbench.errors import several
from modbench.records.metrics import METRICS
from modbench.report.leaderboard.board import TO_DENSE, Board
from modbench.report.leaderboard.columns import FIRST, MINUS, Column
from modbench.report.leaderboard.rows import Row, center, spread
from modbench.report.table import Number, Table
from modbench.report.timing.values import MARK, ROUNDING, time_marks

_FIELD = re.compile(r"\{(\w+):([^}]*)\}")
_UNITS = {"ms": 1e-3, "MB": 1e6}


def metric_columns(rows: Sequence[Row], columns: Iterable[Column]) -> dict[str, list[str]]:
    """The cells of ``rows`` by heading, of those ``columns`` that show metrics."""
    return {of.heading: [_cell(row, of.cells) for row in rows] for of in columns if of.cells}


def ranking_column(board: Board) -> Column:
    """The column of the metric that ranks ``board``: one of `FIRST`, or another one to put before
    them."""
    name = board.rank_by
    form, unit = "" if METRICS[name].kind == "exact" else ".4f", METRICS[name].unit
    new = Column(
        f"{name} ({unit})", METRICS[name].meaning, METRICS[name].direction, f"{{{name}:{form}}}"
    )
    return next((column for column in FIRST if f"{{{name}:" in column.cells), new)


def first_columns(board: Board) -> list[Column]:
    """The columns `FIRST` of the page of ``board``: with the metric that ranks it, and the difference to
    the dense row in its unit; without that if no row has one."""
    ranking, unit = ranking_column(board), METRICS[board.rank_by].unit
    rest = [column for column in FIRST[2:] if column not in (ranking, MINUS)]
    minus = replace(MINUS, heading=f"minus dense ({unit})", better=METRICS[board.rank_by].direction)
    return [*FIRST[:2], ranking, *([minus] if board.pairs_of(TO_DENSE) else []), *rest]


def _cell(row: Row, template: str) -> str:
    """``template`` with the figures of ``row``, the first one at full precision; "-" if none was
    measured."""
    fields = _FIELD.findall(template)
    shown = [metric_text(row, *field) for field in fields]
    if {*shown} == {"-"}:
        return "-"
    text, first = _FIELD.sub("{}", template).format(*shown), center(row, fields[0][0])
    return text if first is None else Number(text, first)


def si(value: float, digits: int = 4) -> str:
    """``value`` with ``digits`` significant digits and an SI prefix: 1.234 T."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = min(max(int(exponent) // 3, 0), 8)
    number = f"{float(mantissa) * 10 ** (int(exponent) - 3 * power):#.{digits}g}".rstrip(".")
    return f"{number} {' kMGTPEZY'[power]}".rstrip()


def metric_text(row: Row, name: str, form: str) -> str:
    """The metric ``name`` of ``row`` as ``form``: si with a number of digits, ms, MB or one of Python's;
    "-" if not measured."""

    def text(number: float) -> str:
        if form.startswith("si"):
            return si(number, int(form[2:] or 4))
        if form in _UNITS:
            return f"{number / _UNITS[form]:.1f}"
        return f"{number:{f'z{form}' if form.endswith('f') else form}}"  # z: no sign for rounded zeros

    value, half = center(row, name), spread(row, name)
    if value is None:
        return "-"
    shown = text(value)
    if METRICS[name].kind == "exact":
        return f"{shown}..{text(value + half)}" if half else shown
    timed = row["_timed"].get(name, {}) if METRICS[name].kind == "timed" else {}
    marks = time_marks(timed.get("stable"), timed.get("loaded"), timed.get("throttled"))
    return shown + (f" ± {text(half)}" if half else "") + (f" ({marks})" if marks else "")


PROCESSORS = (
    f"{MARK}: the two rows did not run on one processor type (processor, precision, number of threads), "
    f"so rounding differs, too; that alone changed losses by {ROUNDING} nats per token (rms), a seed by "
    "several times as much."
)
_SMALLEST = 1e-4


def difference_text(pair: Mapping[str, Any]) -> str:
    """The value of a row of the frame of pairs with its interval and verdict, or the reason why the data
    allow none (the page of an unfinished suite says it once); and a mark for other processor types."""
    value = f"{pair['value']:+z.4f}"
    if pair["low"] is not None:
        value += f" ({pair['low']:+z.4f} to {pair['high']:+z.4f})"
    untold = pair["no_verdict_because"]
    reason = f"({untold})" if untold not in (None, INTERIM) else ""
    mark = "" if pair["same_processor"] else MARK
    text = " ".join(filter(None, (value, pair["verdict"] or reason, mark)))
    return Number(text, pair["value"])


def p_text(p: float | None) -> str:
    """A p-value with two digits."""
    if p is None:
        return "-"
    return Number(f"{p:.2g}" if p >= _SMALLEST else f"below {_SMALLEST:g}", p)


#: What each family of comparisons consists of.
_FAMILIES = {
    "dense": "all those with the dense row",
    "best": "all those with the first row",
    "dense, equal depth": "all those with the dense model at equal depth",
}


def family_text(family: str, tests: int) -> str:
    """The sentence on the verdicts of a family of ``tests`` comparisons."""
    name = _FAMILIES.get(family, f"the {family} ones that the suite states")
    return (
        f"Verdicts are adjusted by Holm's method for {several(tests, 'comparison')}: {name}. A wrong "
        "*better* or *worse* among them has a probability of 5 % at most. Intervals are those of single "
        "comparisons, so one that excludes 0 may still be *undecided*."
    )


#: Why differences have no verdict, by what a cell says.
REASONS = {
    FEW_SEEDS: "*few seeds*: no verdict is given with fewer than three seeds a row, unless the noise "
    "that is pooled over all rows has eight degrees of freedom",
    MISFIT: "*misfit*: parabolas miss these curves by more than the noise, and another fit gives a "
    "difference outside of the interval",
}


def untold_text(pairs: Iterable[Mapping[str, Any]]) -> str:
    """The sentence on the reasons why some of ``pairs`` have no verdict; empty if all have one."""
    reasons = dict.fromkeys(pair["no_verdict_because"] for pair in pairs)
    text = "; ".join(REASONS[reason] for reason in reasons if reason in REASONS)
    return f"{text}." if text else ""


def interim_text(suite: Mapping[str, Any]) -> str:
    """The sentence of the page of an unfinished suite; empty if its runs are finished."""
    if not suite["left"]:
        return ""
    return (
        f"**Interim:** {suite['left']} of {several(suite['wanted'], 'run')} of this suite are left, so "
        "intervals stand here without verdicts."
    )


def pair_table(
    leading: Sequence[tuple[str, Sequence[str]]], pairs: Sequence[Mapping[str, Any]], unit: str
) -> Table:
    """A table of rows of the frame of pairs: columns ``leading``, then scheme, minus, difference and
    p of each of ``pairs``."""
    headings = [*(heading for heading, _ in leading), "scheme", "minus", f"difference ({unit})"]
    rows = [
        (
            *(cells[number] for _, cells in leading),
            pair["scheme"],
            pair["other"],
            difference_text(pair),
            p_text(pair["p"]),
            p_text(pair["p_adjusted"]),
        )
        for number, pair in enumerate(pairs)
    ]
    first = len(leading)
    return Table([*headings, "p", "adjusted p"], rows, left=(first, first + 1))
