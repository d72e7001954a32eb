"""Cells of the tables of an isoFLOP suite's page."""

from modbench.analysis.difference import Interval
from modbench.report.leaderboard.metric_cells import si
from modbench.report.table import Number


def with_interval(value: float | None, interval: Interval | None, form: str) -> str:
    """``value`` with its interval; ``form``: si or one of Python's."""

    def text(number: float) -> str:
        return si(number, 3) if form == "si" else f"{number:{form}}"

    if value is None:
        return "-"
    between = f" ({text(interval[0])} to {text(interval[1])})" if interval else ""
    return Number(text(value) + between, value)
