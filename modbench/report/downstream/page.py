"""The section of a page on downstream tasks: the main metric of each task by scheme."""

from collections.abc import Sequence
from typing import Any

from modbench.report.downstream.scores import comparable, metrics_of, tasks_of
from modbench.report.leaderboard.board import Board, comparison_titles
from modbench.report.leaderboard.rows import Row, spread
from modbench.report.table import Number, Table

#: Values of the template `pages/downstream.md.j2`.
Section = dict[str, Any]


def downstream_section(board: Board) -> Section:
    """The section on downstream tasks; empty if nothing was scored."""
    titles = comparison_titles(board.comparisons)
    compared = [
        {
            "title": title if len(titles) > 1 else "",
            "table": _table(shown),
            "incomparable": [task for task in tasks_of(shown) if not comparable(shown, task)],
            "leaks": [(r["_name"], r["leak_audit"]) for r in shown if r["leak_audit"] != "passed"],
        }
        for rows, title in zip(board.comparisons, titles, strict=True)
        if (shown := scored_rows(rows))
    ]
    return {"compared": compared}


def scored_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of ``rows`` that were scored on any task; of isoFLOP suites, each scheme at the size and
    learning rate of its lowest held-out loss."""
    scored = [row for row in rows if tasks_of([row])]
    if not any(result.isoflop for row in scored for result in row["_results"]):
        return scored
    best: dict[str, Row] = {}
    for row in sorted(scored, key=_loss):
        best.setdefault(row["label"], row)
    return [best[scheme] for scheme in sorted(best)]


def _loss(row: Row) -> tuple[float, str]:
    loss = row["heldout_loss"]
    return float("inf") if loss is None else loss, row["_name"]


def _table(rows: Sequence[Row]) -> Table:
    """A line for each task with its main metric, a column for each scheme."""
    lines: list[Sequence[object]] = []
    for task in tasks_of(rows):
        metric = metrics_of(rows, task)[0]
        name = f"{task}:{metric}"
        chances = (row.get(f"{name}_chance") for row in rows)
        levels = dict.fromkeys(_number(chance) for chance in chances if chance is not None)
        about = (task, metric, ", ".join(levels) or "-")
        lines.append((*about, *(_score(row, name) for row in rows)))
    names = [row["_name"] + (" †" if row["_unranked"] else "") for row in rows]
    return Table(("task", "metric", "chance", *names), lines, left=(0, 1), caption="Scores")


def _score(row: Row, name: str) -> str:
    value, half = row[name], spread(row, name)
    if value is None:
        return "-"
    return Number(_number(value) + ("" if half is None else f" ± {_number(half)}"), value)


def _number(value: float) -> str:
    return f"{value:z.3f}" if abs(value) < 1e4 else f"{value:.3g}"
