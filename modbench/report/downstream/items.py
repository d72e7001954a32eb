"""Paired differences between schemes on the items of downstream tasks. N items."""

from collections.abc import Iterator, Sequence

import numpy as np

from modbench.analysis.items import paired_bootstrap
from modbench.analysis.noise import Array
from modbench.report.downstream.scores import comparable, entries_of, tasks_of
from modbench.report.leaderboard.entry import Entry
from modbench.report.leaderboard.row import Row
from modbench.report.table import Table, escaped

#: Router of the scheme that others are compared with, if it was scored.
DENSE = "vanilla"
#: Scores of single items that are compared, and their names in the table.
_BY_ITEM = {"correct": "accuracy", "bits_per_byte": "bits/byte of the right answer"}
_DIFFERENCES = (
    "on the same items (accuracy: higher is better; bits per byte: lower), with the 95 % interval of a "
    "paired bootstrap over items; * where it excludes 0. Scores of an item are means over seeds; the "
    "interval leaves out the noise between seeds."
)


def comparison_tables(entries: Sequence[Entry]) -> Iterator[str | Table]:
    """The tables and paragraphs on schemes compared item by item; none for fewer than two schemes."""
    if len(entries) < 2:
        return
    reference = _reference(entries)
    others = [entry for entry in entries if entry is not reference]
    rows = [entry.row for entry in entries]
    lines = [
        (task, name, *cells)
        for task in tasks_of(rows)
        if comparable(rows, task)
        for column, name in _BY_ITEM.items()
        if any(cells := [_difference(entry.row, reference.row, task, column) for entry in others])
    ]
    if lines:
        yield f"Difference from {escaped(reference.row.label)} {_DIFFERENCES}"
        headings = ("task", "score", *(entry.row.label for entry in others))
        yield Table(headings, [[cell or "-" for cell in line] for line in lines], left=(0, 1))


def _reference(entries: Sequence[Entry]) -> Entry:
    """The dense scheme; without one, the first of the ranked ones."""
    dense = [entry for entry in entries if entry.row.run.router.name == DENSE]
    if dense:
        return min(dense, key=lambda entry: entry.row.label)
    return min(entries, key=lambda entry: (entry.position is None, entry.position or 0))


def _difference(row: Row, reference: Row, task: str, column: str) -> str:
    """``row`` minus ``reference`` with its interval; empty if their items can't be compared."""
    scores_N = _items_of(row, task, column)
    others_N = _items_of(reference, task, column)
    if scores_N is None or others_N is None or len(scores_N) != len(others_N):
        return ""
    if np.isnan(scores_N - others_N).all():
        return ""
    paired = paired_bootstrap(scores_N, others_N)
    low, high = paired.interval
    mark = "" if low <= 0 <= high else "*"
    return f"{paired.difference:z.3f}{mark} ({low:z.3f} to {high:z.3f})"


def _items_of(row: Row, task: str, column: str) -> Array | None:
    """The scores (N,) of single items, the mean over seeds; None if a seed has none."""
    seeds = [entry.get("by_item") for entry in entries_of(row, task)]
    columns = [np.array(items[column], dtype=np.float64) for items in seeds if items]
    if not columns or len(columns) < len(seeds) or len({*map(len, columns)}) > 1:
        return None
    mean_N: Array = np.mean(columns, axis=0)
    return mean_N
