"""Cells of tables: metrics of a row as text."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from modbench.records.metrics import METRICS
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.columns import FIRST, MINUS, Column
from modbench.report.leaderboard.differences import TO_DENSE
from modbench.report.leaderboard.row import Row
from modbench.report.table import Number

_FIELD = re.compile(r"\{(\w+):([^}]*)\}")
_UNITS = {"ms": 1e-3, "MB": 1e6}


def metric_columns(
    board: Leaderboard, rows: Sequence[Row], columns: Iterable[Column]
) -> dict[str, list[str]]:
    """The cells of ``rows`` by heading, of those ``columns`` that show metrics."""
    return {of.heading: [_cell(board, row, of.cells) for row in rows] for of in columns if of.cells}


def ranking_column(board: Leaderboard) -> Column:
    """The column of the metric that ranks ``board``: one of `FIRST`, or another one to put before
    them."""
    name = board.rank_by
    form, unit = "" if METRICS[name].kind == "exact" else ".4f", METRICS[name].unit
    new = Column(
        f"{name} ({unit})", METRICS[name].meaning, METRICS[name].direction, f"{{{name}:{form}}}"
    )
    return next((column for column in FIRST if f"{{{name}:" in column.cells), new)


def first_columns(board: Leaderboard) -> list[Column]:
    """The columns `FIRST` of the page of ``board``: with the metric that ranks it, and the difference to
    the dense row in its unit; without that if no row has one."""
    ranking, unit = ranking_column(board), METRICS[board.rank_by].unit
    rest = [column for column in FIRST[2:] if column not in (ranking, MINUS)]
    minus = replace(MINUS, heading=f"minus dense ({unit})", better=METRICS[board.rank_by].direction)
    return [*FIRST[:2], ranking, *([minus] if board.differences.of(TO_DENSE) else []), *rest]


def _cell(board: Leaderboard, row: Row, template: str) -> str:
    """``template`` with the figures of ``row``, the first one at full precision; "-" if none was
    measured."""
    fields = _FIELD.findall(template)
    shown = [metric_text(board, row, *field) for field in fields]
    if {*shown} == {"-"}:
        return "-"
    text, first = _FIELD.sub("{}", template).format(*shown), row.value(fields[0][0])
    return Number(text, first.center) if first else text


def si(value: float, digits: int = 4) -> str:
    """``value`` with ``digits`` significant digits and an SI prefix: 1.234 T."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = min(max(int(exponent) // 3, 0), 8)
    number = f"{float(mantissa) * 10 ** (int(exponent) - 3 * power):#.{digits}g}".rstrip(".")
    return f"{number} {' kMGTPEZY'[power]}".rstrip()


def metric_text(board: Leaderboard, row: Row, name: str, form: str) -> str:
    """The metric ``name`` of ``row`` as ``form``: si with a number of digits, ms, MB or one of Python's;
    "-" if not measured."""

    def text(number: float) -> str:
        if form.startswith("si"):
            return si(number, int(form[2:] or 4))
        if form in _UNITS:
            return f"{number / _UNITS[form]:.1f}"
        return f"{number:{f'z{form}' if form.endswith('f') else form}}"  # z: no sign for rounded zeros

    value = row.value(name)
    if value is None:
        return "-"
    shown, spread = text(value.center), value.spread
    if METRICS[name].kind == "exact":
        return f"{shown}..{text(value.center + spread)}" if spread else shown
    marks = f" ({value.marks})" if value.marks else ""
    return shown + ("" if not spread else f" ± {text(spread)}") + marks
