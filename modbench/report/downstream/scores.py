"""Scores of downstream tasks: which tasks and metrics rows have, and what names their columns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modbench.records.sections import TaskScores
from modbench.report.frame import BITS, MARGIN

#: Metrics that stand for a task on the page, if it has one of them, in this order.
_MAIN = ("acc", "exact_match", "bits_per_byte")


def tasks_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the tasks that any of ``rows`` was scored on, in the order of the suite; those of a group
    follow it."""
    places: dict[str, tuple[int, bool, str]] = {}
    for row in rows:
        asked = list(row["_settings"].get("downstream", ()))
        for result in row["_ok"]:
            for task, entry in result.downstream.items():
                group = entry.part_of
                order = asked.index(group) if group in asked else len(asked)
                places.setdefault(task, (order, task != group, task))
    return sorted(places, key=lambda task: places[task])


def entries_of(row: Mapping[str, Any], task: str) -> list[TaskScores]:
    """The entries of ``task`` in the records of the finished seeds of ``row``."""
    return [result.downstream[task] for result in row["_ok"] if task in result.downstream]


def metrics_of(rows: Iterable[Mapping[str, Any]], task: str) -> list[str]:
    """Metrics of ``task``, its main one first; `BITS` and `MARGIN` last, where it has them."""
    entries = [entry for row in rows for entry in entries_of(row, task)]
    names = {name for entry in entries for name in entry.metrics}
    main = next((name for name in _MAIN if name in names), None)
    ordered = sorted(names, key=lambda name: (name != main, name))
    return ordered + [name for name in (BITS, MARGIN) if any(getattr(entry, name) for entry in entries)]


def comparable(rows: Sequence[Mapping[str, Any]], task: str) -> bool:
    """Return True if all rows that have ``task`` were scored on the same items in the same way."""
    names = ("items", "few_shot", "version", "sha256")
    entries = [entry for row in rows for entry in entries_of(row, task)]
    settings = {tuple(getattr(entry, name) for name in names) for entry in entries}
    return len(settings) == 1
