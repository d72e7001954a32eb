"""Downstream tasks: their names, their metrics, and the columns of both."""

from collections.abc import Iterable, Sequence

from modbench.records.result import Result
from modbench.report.runs import ANSWER_BITS, ANSWER_MARGIN

#: Metrics that stand for a task on the page, if it has one of them, in this order.
_MAIN = ("acc", "exact_match", "bits_per_byte")
#: A task whose scores older records hold as metrics.
_CLOZE = "modbench_cloze"


def tasks_of(results: Iterable[Result]) -> list[str]:
    """Names of the tasks that any finished one of ``results`` was scored on, in the order of the suite;
    those of a group follow it."""
    places: dict[str, tuple[int, bool, str]] = {}
    for result in results:
        if result.status != "ok":
            continue
        asked = [*result.settings.get("downstream", ())]
        parts = {task: entry.part_of for task, entry in result.downstream.items()}
        parts |= {_CLOZE: _CLOZE} if _CLOZE in result.metrics else {}
        for task, group in parts.items():
            order = asked.index(group) if group in asked else len(asked)
            places.setdefault(task, (order, task != group, task))
    return sorted(places, key=lambda task: places[task])


def of_task(column: str, tasks: Iterable[str]) -> tuple[str, str]:
    """Task and part of ``column``; empty if it is of none of ``tasks``. A task may have a colon in its
    name, and be the start of another one's."""
    task = max((task for task in tasks if column.startswith(f"{task}:")), key=len, default="")
    return task, column.removeprefix(f"{task}:") if task else ""


def metrics_of(columns: Iterable[str], task: str, tasks: Sequence[str]) -> list[str]:
    """Metrics of ``task`` among ``columns``, its main one first; those of answers last."""
    parts = {part for column in columns for of, part in [of_task(column, tasks)] if of == task}
    names = {part for part in parts if f"{part}_untrained" in parts}
    main = next((name for name in _MAIN if name in names), None)
    last = (ANSWER_BITS, ANSWER_MARGIN)
    return sorted(names, key=lambda name: (name in last, name != main, name))


def task_columns(columns: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """``columns`` in the order of ``tasks``, those of the main metric of each first."""
    ordered = []
    for task in tasks:
        metrics = metrics_of(columns, task, tasks)
        own = [(column, of_task(column, tasks)[1]) for column in columns]
        number = {
            column: next((n for n, name in enumerate(metrics) if part.startswith(name)), len(metrics))
            for column, part in own
            if column == f"{task}:{part}"
        }
        ordered += sorted(number, key=lambda column: number[column])
    return ordered
