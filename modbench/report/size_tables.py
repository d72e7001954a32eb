"""Tables of a comparison with several shapes: each scheme at its best size, its sizes underneath."""

from collections.abc import Sequence
from typing import Any

from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.metric_cells import forms, metric_columns
from modbench.report.row import Row
from modbench.report.scheme import shape_columns, shape_name, split_label
from modbench.report.table import markdown_table

#: Columns of the second table, next to the one of the metric that ranks.
_OF_SIZES = (
    "forward FLOP/token, nominal / realised",
    "steps",
    "tokens",
    "training step (ms), median ± IQR",
    "parameters, active / all",
)
_LEFT = ("scheme", "size", "FLOPs", "audit")


def size_tables(board: Leaderboard, entries: Sequence[Entry]) -> list[str]:
    """The tables of ``entries``, the rows of one comparison; the second only if a scheme has several."""
    best = [entry for entry in entries if entry.best_size]
    rows = [entry.row for entry in best]
    place = {entry.scheme: number for number, entry in enumerate(best)}
    # Stable: the sizes of a scheme stay in ascending order.
    every = sorted(entries, key=lambda entry: (place[entry.scheme], _active(entry.row)))
    first = {
        "rank": [_rank(entry) for entry in best],
        "scheme": [entry.scheme for entry in best],
        "size": [_of_how_many(entry, entries) for entry in best],
        **metric_columns(board, rows),
        **audit_columns(rows),
    }
    if len(best) == len(every):
        return [_table(first)]
    return [_table(first), "The sizes of each scheme:", _table(_all_sizes(board, every))]


def audit_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Source of the FLOPs of ``rows``, if any states it, and their audits."""
    sources = [row.flops_source or "-" for row in rows]
    return ({"FLOPs": sources} if {*sources} != {"-"} else {}) | {"audit": [row.audit for row in rows]}


def _all_sizes(board: Leaderboard, entries: Sequence[Entry]) -> dict[str, list[Any]]:
    rows = [entry.row for entry in entries]
    shapes = shape_columns([row.model for row in rows])
    columns: dict[str, list[Any]] = {
        "scheme": [entry.scheme for entry in entries],
        "size": [_size(entry.row) + _mark(entry) for entry in entries],
    }
    for name in shapes[0]:
        columns[name.replace("_", " ")] = [shape[name] for shape in shapes]
    rates = [row.cell["train"].get("learning_rate") for row in rows]
    if len({*rates}) > 1:
        columns["learning rate"] = rates
    spent = [row.budget_spent for row in rows]
    columns["budget spent"] = [None if share is None else f"{share:.2%}" for share in spent]
    columns["seeds"] = [len(row.ok) for row in rows]
    found = metric_columns(board, rows)
    of_rank = next(head for head, form in forms(board).items() if f"{{{board.rank_by}:" in form)
    for head in dict.fromkeys((of_rank, *_OF_SIZES)):
        if head in found:
            columns[head] = found[head]
    known = {head: cells for head, cells in columns.items() if any(one is not None for one in cells)}
    return {head: ["-" if one is None else one for one in cells] for head, cells in known.items()}


def _rank(entry: Entry) -> str:
    return f"{entry.rank or '-'}{' †' if entry.note else ''}"


def _mark(entry: Entry) -> str:
    if entry.unranked:
        return " (not ranked) †"
    return f"{' (best)' if entry.best_size and entry.sizes > 1 else ''}{' †' if entry.note else ''}"


def _size(row: Row) -> str:
    """The label of the shape; without one, width and depth."""
    return split_label(row.cell["router"]["label"])[1] or shape_name(row.model)


def _of_how_many(entry: Entry, entries: Sequence[Entry]) -> str:
    """The size of ``entry`` and its place among those of its scheme."""
    words = [_size(entry.row)]
    if entry.sizes > 1:
        words.append(f"best of {entry.sizes} sizes")
    if entry.edge:
        words.append(f"the {entry.edge}")
    others = sum(bool(other.unranked) for other in entries if other.scheme == entry.scheme)
    if entry.sizes and others:
        words.append(f"{others} more not ranked")
    return ", ".join(words)


def _active(row: Row) -> float:
    active = row.value("active_parameters")
    return active.center if active else float("inf")


def _table(columns: dict[str, list[Any]]) -> str:
    left = [place for place, head in enumerate(columns) if head in _LEFT]
    return markdown_table(list(columns), zip(*columns.values(), strict=True), left=left)
