"""The section of a page on downstream tasks: the main metric of each by scheme."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

from modbench.records.result import Result
from modbench.report.suite import Row, Suite
from modbench.report.table import Number, Table
from modbench.report.tasks import metrics_of, tasks_of

#: Values of the template `pages/downstream.md.j2`.
Section = dict[str, Any]


def downstream_section(suite: Suite) -> Section:
    """The section on downstream tasks; empty if nothing was scored."""
    tasks = tasks_of(suite.results)
    compared = [
        {
            "title": title if len(suite.comparisons) > 1 else "",
            "table": _table(shown, tasks),
            "incomparable": [task for task in tasks if not comparable(map(suite.finished, shown), task)],
            "leaks": [(of["row"], of["leak_audit"]) for of in shown if of["leak_audit"] != "passed"],
        }
        for rows, title in zip(suite.comparisons, suite.titles, strict=True)
        if tasks and (shown := _scored(suite, rows, tasks))
    ]
    return {"compared": compared}


def comparable(rows: Iterable[Iterable[Result]], task: str) -> bool:
    """Return True if all rows that have ``task`` were scored on the same items in the same way."""
    entries = [of.downstream[task] for row in rows for of in row if task in of.downstream]
    return len({(of.items, of.few_shot, of.version, of.sha256) for of in entries}) < 2


def _scored(suite: Suite, rows: Iterable[Row], tasks: Sequence[str]) -> list[Row]:
    """Those of ``rows`` that were scored on any task; of isoFLOP suites, each scheme at the size and
    learning rate of its lowest held-out loss."""
    scored = [row for row in rows if tasks_of(suite.finished(row))]
    if not any(suite.first(row).isoflop for row in scored):
        return scored
    best: dict[str, Row] = {}
    for row in sorted(scored, key=_loss):
        best.setdefault(row["label"], row)
    return [best[scheme] for scheme in sorted(best)]


def _loss(row: Row) -> tuple[float, str]:
    loss = row["heldout_loss"]
    return inf if loss is None else loss, row["row"]


def _table(rows: Sequence[Row], tasks: Sequence[str]) -> Table:
    """A line for each task with its main metric, a column for each scheme."""
    lines: list[Sequence[object]] = []
    for task in tasks:
        metrics = metrics_of(rows[0], task, tasks)
        shown = [name for name in metrics if any(row[f"{task}:{name}"] is not None for row in rows)]
        for name in shown[:1]:
            column = f"{task}:{name}"
            chances = (row.get(f"{column}_chance") for row in rows)
            levels = dict.fromkeys(_number(chance) for chance in chances if chance is not None)
            scores = (_score(row, column) for row in rows)
            lines.append((task, name, ", ".join(levels) or "-", *scores))
    names = [row["row"] + (" †" if row["unranked"] else "") for row in rows]
    return Table(("task", "metric", "chance", *names), lines, left=(0, 1), caption="Scores")


def _score(row: Mapping[str, Any], name: str) -> str:
    value, high = row[name], row[f"{name}_high"]
    if value is None:
        return "-"
    return Number(_number(value) + ("" if high is None else f" ± {_number(high - value)}"), value)


def _number(value: float) -> str:
    return f"{value:z.3f}" if abs(value) < 1e4 else f"{value:.3g}"
