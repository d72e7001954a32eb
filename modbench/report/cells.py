"""Cells of tables: metrics of a row and pairs of rows, as text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from modbench.analysis.difference import INTERIM
from modbench.analysis.frames import Row
from modbench.records.metrics import METRICS
from modbench.report.schemes import ends_of
from modbench.report.table import Number, Table, si
from modbench.report.times import MARK, time_marks

_FIELD = re.compile(r"\{(\w+):([^}]*)\}")
_UNITS = {"ms": 1e-3, "MB": 1e6}
_SMALLEST = 1e-4


def metric_columns(rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, list[str]]:
    """The cells of ``rows`` by heading, from the metrics and formats of ``columns`` (`metric_text`)."""
    return {heading: [_cell(row, of) for row in rows] for heading, of in columns.items()}


def _cell(row: Row, template: str) -> str:
    """``template`` with the figures of ``row``, the first one at full precision; "-" if none was
    measured."""
    fields = _FIELD.findall(template)
    shown = [metric_text(row, *field) for field in fields]
    if {*shown} == {"-"}:
        return "-"
    text, first = _FIELD.sub("{}", template).format(*shown), center(row, fields[0][0])
    return text if first is None else Number(text, first)


def center(row: Row, name: str) -> float | None:
    """The value of the metric ``name``: a mean, a median, or the smallest of a range."""
    value = row.get(name, row.get(f"{name}_median"))
    return None if value is None else float(ends_of(value)[0])


def metric_text(row: Row, name: str, form: str) -> str:
    """The metric ``name`` of ``row`` as ``form``: si with a number of digits, ms, MB or one of Python's;
    "-" if not measured."""

    def text(number: float) -> str:
        if form.startswith("si"):
            return si(number, int(form[2:] or 4))
        if form in _UNITS:
            return f"{number / _UNITS[form]:.1f}"
        return f"{number:{f'z{form}' if form.endswith('f') else form}}"  # z: no sign for rounded zeros

    kind = METRICS[name].kind
    value = row.get(f"{name}_median" if kind == "timed" else name)
    if value is None:
        return "-"
    if kind == "exact":
        low, high = ends_of(value)
        return text(low) if low == high else f"{text(low)}..{text(high)}"
    if kind == "timed":
        half = row.get(f"{name}_iqr")
        marks = time_marks(*(row.get(f"{name}_{of}") for of in ("stable", "loaded", "throttled")))
    else:
        half, marks = row[f"{name}_high"], ""
        half = None if half is None else half - value
    return text(value) + (f" ± {text(half)}" if half else "") + (f" ({marks})" if marks else "")


def difference_text(pair: Mapping[str, Any]) -> str:
    """The value of a row of the frame of pairs with its interval and verdict, or the reason why the data
    allow none (the page of an unfinished suite says it once); and a mark for other processor types."""
    value = f"{pair['value']:+z.3f}"
    if pair["low"] is not None:
        value += f" ({pair['low']:+z.3f} to {pair['high']:+z.3f})"
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


def stated_cells(pair: Mapping[str, Any], **further: object) -> dict[str, object]:
    """The cells of a pair that a suite states, by heading, with ``further`` ones after the names. A pair
    that can't be compared has no value; that of an unfinished suite is not judged."""
    untold = pair["no_verdict_because"]
    told = "-" if pair["value"] is None else difference_text({**pair, "verdict": None})
    return {
        "role": pair["family"],
        "scheme": pair["scheme"],
        "minus": pair["other"],
        **further,
        "difference (nats/token)": told,
        "margin (nats/token)": pair["margin"],
        "adjusted p": p_text(None if untold == INTERIM else pair["p_adjusted"]),
        "verdict": pair["verdict"] or untold,
    }


def pair_table(pairs: Sequence[Mapping[str, Any]], *leading: tuple[str, Sequence[str]]) -> Table:
    """A table of rows of the frame of pairs: columns ``leading``, a heading with its cells each, then
    scheme, minus, difference and p of each of ``pairs``."""
    lines = [
        {heading: cells[number] for heading, cells in leading}
        | {"scheme": pair["scheme"], "minus": pair["other"]}
        | {"difference (nats/token)": difference_text(pair)}
        | {"p": p_text(pair["p"]), "adjusted p": p_text(pair["p_adjusted"])}
        for number, pair in enumerate(pairs)
    ]
    return Table.of(lines, left=(len(leading), len(leading) + 1))
