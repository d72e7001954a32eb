"""Cells and tables of differences, for the pages of all suites."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modbench.analysis.difference import FEW_SEEDS, INTERIM, MISFIT, Difference
from modbench.errors import several
from modbench.report.processor import MARK, ROUNDING
from modbench.report.table import Number, Table

PROCESSORS = (
    f"{MARK}: the two rows did not run on one processor type (processor, precision, number of threads), "
    f"so rounding differs, too; that alone changed losses by {ROUNDING} nats per token (rms), a seed by "
    "several times as much."
)
_SMALLEST = 1e-4


def difference_text(difference: Difference, same_processor: bool = True) -> str:
    """The difference with its interval and verdict, or the reason why the data allow none (the page of
    an unfinished suite says it once); and a mark for other processor types."""
    value = f"{difference.value:+z.4f}"
    if difference.interval:
        low, high = difference.interval
        value += f" ({low:+z.4f} to {high:+z.4f})"
    untold = f"({difference.untold})" if difference.untold not in ("", INTERIM) else ""
    word = difference.verdict or untold
    text = " ".join(filter(None, (value, word, "" if same_processor else MARK)))
    return Number(text, difference.value)


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


def untold_text(differences: Iterable[Difference]) -> str:
    """The sentence on the reasons why some of ``differences`` have no verdict; empty if all have one."""
    reasons = dict.fromkeys(of.untold for of in differences)
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
