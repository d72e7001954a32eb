"""Tables of one comparison of the leaderboard: schemes at their best size, more columns, all sizes."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from modbench.records.metrics import METRICS
from modbench.report.layers import values as layer_values
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.columns import FIRST, GROUP, MORE
from modbench.report.leaderboard.differences import TO_BEST, TO_DENSE
from modbench.report.leaderboard.entry import Entry
from modbench.report.leaderboard.metric_cells import (
    difference_text,
    first_columns,
    metric_columns,
    pair_table,
    ranking_column,
)
from modbench.report.leaderboard.row import Row
from modbench.report.leaderboard.scheme import differing, shape_columns, shape_name, split_label
from modbench.report.table import Table

_LEFT = ("group", "scheme", "size", "FLOPs", "audit")


def first_table(board: Leaderboard, entries: Sequence[Entry]) -> Table:
    """The columns `FIRST` of each scheme at its best size; without groups if no row has one."""
    best = best_entries(entries)
    rows, names = [entry.row for entry in best], _names(entries)
    cells: dict[str, Sequence[Any]] = {
        "group": [_group(board, entry) for entry in best],
        "scheme": [names[row.label] for row in rows],
    }
    for column in first_columns(board):
        if column.heading.startswith("minus dense"):
            cells[column.heading] = [_minus_dense(board, entry) for entry in best]
        else:
            cells |= metric_columns(board, rows, [column])
    cells["audit"] = [row.audit for row in rows]
    table = _table({name: of for name, of in cells.items() if name != GROUP.heading or {*of} != {"-"}})
    by = ranking_column(board).heading.partition(" (")[0]
    return table.about(f"Schemes, ordered by {by}")


def _group(board: Leaderboard, entry: Entry) -> str:
    group = "not ranked" if entry.unranked else board.differences.group(entry)
    return f"{group}{' †' if entry.note else ''}".strip() or "-"


def _minus_dense(board: Leaderboard, entry: Entry) -> str | None:
    pair = board.differences.to(entry, TO_DENSE)
    return difference_text(pair.difference, pair.same_processor) if pair else None


def difference_table(board: Leaderboard, entries: Sequence[Entry]) -> Table | None:
    """The differences between ranked rows of ``entries``: those that the suite states, or those to the
    dense row and all others; None without repeated runs."""
    number, names = entries[0].comparison, _names(entries)
    pairs = [
        (names[pair.row.label], names[pair.other.label], pair.difference, pair.same_processor)
        for pair in board.differences.pairs
        if pair.comparison == number and pair.family != TO_BEST and pair.difference.p is not None
    ]
    table = pair_table((), pairs, METRICS[board.rank_by].unit)
    return table.about("Differences between rows") if pairs else None


def pairs_table(board: Leaderboard) -> Table:
    """The table of differences.csv: one row per pair of ranked rows, at full precision."""
    return Table.of(
        [
            {
                "comparison": pair.comparison,
                "budget": pair.row.budget,
                "row": pair.row.label,
                "minus": pair.other.label,
                "metric": board.rank_by,
                "difference": pair.difference.value,
                "difference_low": pair.difference.interval and pair.difference.interval[0],
                "difference_high": pair.difference.interval and pair.difference.interval[1],
                "p": pair.difference.p,
                "family": pair.family or None,
                "p_adjusted": pair.difference.p_adjusted,
                "degrees_of_freedom": pair.difference.freedom,
                "verdict": pair.difference.verdict,
                "no_verdict_because": pair.difference.untold or None,
                "margin": pair.margin,
                "pairs": pair.difference.pairs,
                "same_processor": pair.same_processor,
            }
            for pair in board.differences.pairs
        ]
    )


def more_table(board: Leaderboard, entries: Sequence[Entry]) -> Table:
    """The columns `MORE` of the same rows, without those in which no row has a value."""
    rows, names = [entry.row for entry in best_entries(entries)], _names(entries)
    sizes = [_size(row) for row in rows] if differing([row.model for row in rows]) else ["-"]
    columns = {"size": sizes, **metric_columns(board, rows, MORE)}
    columns["FLOPs"] = [row.flops_source or "-" for row in rows]
    shown = {heading: cells for heading, cells in columns.items() if {*cells} != {"-"}}
    table = _table({"scheme": [names[row.label] for row in rows], **shown})
    return table.about("Further metrics")


def layer_table(entries: Sequence[Entry]) -> Table | None:
    """Updates and gates of the routed layers of each scheme at its best size, means over seeds; None if
    no record has them."""
    best, names = best_entries(entries), _names(entries)
    held = {entry.row.label: layer_values(entry.row.ok) for entry in best}
    routed = [label for label, layers in held.items() if layers]
    if not routed:
        return None
    columns: dict[str, Sequence[Any]] = {"scheme": [names[label] for label in routed]}
    for layer in sorted({layer for layers in held.values() for layer in layers}):
        values = [held[label].get(layer, {}) for label in routed]
        for name, heading in (("added", "adds"), ("gate_scale", "gate")):
            cells = [f"{fmean(of[name]):.2g}" if name in of else "-" for of in values]
            if {*cells} != {"-"}:
                columns[f"layer {layer} {heading}"] = cells
    return _table(columns).about("Updates and gates of routed layers")


def size_table(board: Leaderboard, entries: Sequence[Entry]) -> Table | None:
    """All sizes of each scheme, in ascending order; None if each has one."""
    best = best_entries(entries)
    if len(best) == len(entries):
        return None
    number = {entry.scheme: number for number, entry in enumerate(best)}
    ascending = sorted(entries, key=lambda entry: (number[entry.scheme], _active(entry.row)))
    rows = [entry.row for entry in ascending]
    shapes = shape_columns([row.model for row in rows])
    columns: dict[str, list[Any]] = {
        "scheme": [entry.scheme for entry in ascending],
        "size": [_size(entry.row) + _mark(entry) for entry in ascending],
    }
    for name in shapes[0]:
        columns[name.replace("_", " ")] = [shape[name] for shape in shapes]
    rates = [row.run.train.learning_rate for row in rows]
    if len({*rates}) > 1:
        columns["learning rate"] = rates
    spent = [row.budget_spent for row in rows]
    columns["budget spent"] = [None if share is None else f"{100 * share:.2f} %" for share in spent]
    columns["seeds"] = [len(row.ok) for row in rows]
    columns |= metric_columns(board, rows, dict.fromkeys((ranking_column(board), *FIRST)))
    table = _table({head: cells for head, cells in columns.items() if {*cells} != {None}})
    return table.about("All sizes of each scheme")


def best_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Those of ``entries`` that are their scheme's best size."""
    return [entry for entry in entries if entry.best_size]


def _names(entries: Sequence[Entry]) -> dict[str, str]:
    """Name of each row by its label; if ``entries`` have several sizes, that of its scheme at a size."""
    if not differing([entry.row.model for entry in entries]):
        return {entry.row.label: entry.row.label for entry in entries}
    return {entry.row.label: _at_size(entry, entries) for entry in entries}


def _mark(entry: Entry) -> str:
    if entry.unranked:
        return " (not ranked) †"
    return f"{' (best)' if entry.best_size and entry.sizes > 1 else ''}{' †' if entry.note else ''}"


def _size(row: Row) -> str:
    """The label of the shape; without one, width and depth."""
    return split_label(row.first.label)[1] or shape_name(row.model)


def _at_size(entry: Entry, entries: Sequence[Entry]) -> str:
    """The scheme of ``entry``, its size, and the place of that among those of the scheme."""
    sizes = [other for other in entries if other.scheme == entry.scheme]
    if len(sizes) == 1 and not split_label(entry.row.label)[1]:
        return entry.scheme
    words = [f"best of {entry.sizes} sizes"] if entry.sizes > 1 else []
    words += [f"the {entry.edge}"] if entry.edge else []
    if entry.sizes and (others := sum(bool(other.unranked) for other in sizes)):
        words.append(f"{others} more not ranked")
    return f"{entry.scheme}, {_size(entry.row)}" + (f" ({', '.join(words)})" if words else "")


def _active(row: Row) -> float:
    active = row.value("active_parameters")
    return active.center if active else float("inf")


def _table(columns: Mapping[str, Sequence[Any]]) -> Table:
    left = [number for number, heading in enumerate(columns) if heading in _LEFT]
    return Table([*columns], [*zip(*columns.values(), strict=True)], left)
