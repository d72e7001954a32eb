"""Cells and tables of differences, for the pages of all suites."""

from collections.abc import Sequence

from modbench.analysis.difference import Difference
from modbench.errors import several
from modbench.report.processor import MARK
from modbench.report.table import Number, Table

PROCESSORS = (
    f"{MARK}: the two rows did not run on one processor type (processor, precision, number of threads). "
    "Rounding then differs, which changes a loss, so noise that they share cancels in part only."
)
_SMALLEST = 1e-4


def difference_text(difference: Difference, same_processor: bool = True) -> str:
    """The difference with its interval and verdict, and a mark for other processor types."""
    value = f"{difference.value:+z.4f}"
    if difference.interval:
        low, high = difference.interval
        value += f" ({low:+z.4f} to {high:+z.4f})"
    text = " ".join(filter(None, (value, difference.verdict, "" if same_processor else MARK)))
    return Number(text, difference.value)


def p_text(p: float | None) -> str:
    """A p-value with two digits."""
    if p is None:
        return "-"
    return Number(f"{p:.2g}" if p >= _SMALLEST else f"below {_SMALLEST:g}", p)


def family_text(tests: int, dense: str = "the dense row") -> str:
    """The sentence on the family of comparisons with the dense row."""
    return (
        f"The verdicts of *minus dense* are adjusted by Holm's method for "
        f"{several(tests, 'comparison')}: all those with {dense} on this page. A wrong *better* or "
        "*worse* among them has a probability of 5 % at most. The intervals are those of single "
        "comparisons, so one that excludes 0 may still be *undecided*."
    )


def pair_table(
    leading: Sequence[tuple[str, Sequence[str]]],
    pairs: Sequence[tuple[str, str, Difference, bool]],
    unit: str,
) -> Table:
    """A table of differences with their p-values: columns ``leading``, then scheme, minus, difference
    and p of each of ``pairs``."""
    headings = [*(heading for heading, _ in leading), "scheme", "minus", f"difference ({unit})"]
    rows = [
        (
            *(cells[number] for _, cells in leading),
            scheme,
            other,
            difference_text(difference, same_processor),
            p_text(difference.p),
            p_text(difference.p_adjusted),
        )
        for number, (scheme, other, difference, same_processor) in enumerate(pairs)
    ]
    first = len(leading)
    return Table([*headings, "p", "adjusted p"], rows, left=(first, first + 1))
