"""Scores of downstream tasks, aggregated over the seeds of a row; columns of leaderboard.csv."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from modbench.records.probes import leak_verdict
from modbench.records.sections import Mean, TaskScores
from modbench.report.leaderboard.row import Row, Value, interval

#: Names of the two scores of right answers, next to a task's own metrics.
BITS, MARGIN = "answer_bits_per_byte", "answer_margin"
#: Metrics that stand for a task on the page, if it has one of them, in this order.
_MAIN = ("acc", "exact_match", "bits_per_byte")
_COMPUTE = (
    "tokens",
    "seconds_per_token",
    "nominal_flops_per_token",
    "realised_flops_per_token",
    "share_routed",
)
_SHIFT = ("nats", "flipped", "items")
_SETTINGS = ("items", "few_shot", "version", "truncated")
#: Half of a 95 % interval over standard error.
_NORMAL = 1.96


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of a task for one row. ``value``: mean over seeds with its 95 % t-interval; for one seed,
    the interval is ±1.96 standard errors over items. ``stderr``: over items, mean over seeds. None: not
    known."""

    value: Value
    stderr: float | None
    chance: float | None
    untrained: float | None


def tasks_of(rows: Iterable[Row]) -> list[str]:
    """Names of the tasks that any of ``rows`` was scored on, in the order of the suite; those of a group
    follow it."""
    places: dict[str, tuple[int, bool, str]] = {}
    for row in rows:
        asked = list(row.settings.get("downstream", ()))
        for record in row.ok:
            for task, entry in record.downstream.items():
                group = entry.part_of
                order = asked.index(group) if group in asked else len(asked)
                places.setdefault(task, (order, task != group, task))
    return sorted(places, key=lambda task: places[task])


def entries_of(row: Row, task: str) -> list[TaskScores]:
    """The entries of ``task`` in the records of the finished seeds of ``row``."""
    return [record.downstream[task] for record in row.ok if task in record.downstream]


def metrics_of(rows: Iterable[Row], task: str) -> list[str]:
    """Metrics of ``task``, its main one first; `BITS` and `MARGIN` last, where it has them."""
    entries = [entry for row in rows for entry in entries_of(row, task)]
    names = {name for entry in entries for name in entry.metrics}
    main = next((name for name in _MAIN if name in names), None)
    ordered = sorted(names, key=lambda name: (name != main, name))
    return ordered + [name for name in (BITS, MARGIN) if any(getattr(entry, name) for entry in entries)]


def values_of(row: Row, task: str, metric: str) -> list[Mean]:
    """The entries of ``metric`` of ``task``, one for each seed that has a value."""
    answers = metric in (BITS, MARGIN)
    entries = entries_of(row, task)
    scores = [getattr(e, metric) if answers else e.metrics.get(metric) for e in entries]
    return [score for score in scores if score is not None and score.value is not None]


def score_of(row: Row, task: str, metric: str) -> Score | None:
    """The score of ``row`` on ``metric`` of ``task``; None if no seed has it."""
    scores = values_of(row, task, metric)
    if not scores:
        return None
    value, stderr = (
        interval([score.value for score in scores if score.value is not None]),
        _mean(scores, "stderr"),
    )
    if len(scores) == 1 and stderr is not None:
        half = _NORMAL * stderr
        value = Value(center=value.center, low=value.center - half, high=value.center + half)
    return Score(
        value=value,
        stderr=stderr,
        chance=None if metric in (BITS, MARGIN) else _mean(scores, "chance"),
        untrained=_mean(scores, "untrained"),
    )


def comparable(rows: Iterable[Row], task: str) -> bool:
    """Return True if all rows that have ``task`` were scored on the same items in the same way."""
    names = ("items", "few_shot", "version", "sha256")
    entries = [entry for row in rows for entry in entries_of(row, task)]
    settings = {(*(getattr(entry, name) for name in names), *(entry.missing or ())) for entry in entries}
    return len(settings) == 1


def compute_of(row: Row, task: str, name: str) -> float | None:
    """``name``, such as ``realised_flops_per_token``, of scoring ``task``: the mean over seeds."""
    return _mean(entries_of(row, task), name)


def shift_of(row: Row, task: str) -> dict[str, float]:
    """Batch shift while scoring ``task``: ``nats``, the largest of all seeds; ``flipped`` and ``items``,
    their sums. Empty if no seed has it."""
    shifts = [shift for entry in entries_of(row, task) if (shift := entry.batch_shift)]
    nats = [shift.nats for shift in shifts if shift.nats is not None]
    if not shifts or len(nats) < len(shifts):
        return {}
    return {
        "nats": max(nats),
        "flipped": sum(shift.flipped for shift in shifts),
        "items": sum(shift.items for shift in shifts),
    }


def leak_of(row: Row) -> str:
    """The audit's verdict on leaks: ``passed`` if that of every seed is, else the first other one."""
    verdicts = [leak_verdict(row.findings(result)) for result in row.ok]
    return next(
        (verdict for verdict in verdicts if verdict != "passed"), "passed" if verdicts else "not audited"
    )


def csv_columns(row: Row, tasks: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The columns of ``row``, the same for all rows of a table. ``tasks``: metrics of each task of the
    table. ``TASK:METRIC`` is the value; suffixes ``_stderr``, ``_low``, ``_high``, ``_chance``,
    ``_untrained``; further settings, compute and batch shift of each task. ``leak_audit``: see
    `leak_of`."""
    columns: dict[str, Any] = {"leak_audit": leak_of(row)} if tasks else {}
    for task, metrics in tasks.items():
        for metric in metrics:
            score, name = score_of(row, task, metric), f"{task}:{metric}"
            columns |= {
                name: score and score.value.center,
                f"{name}_stderr": score and score.stderr,
                f"{name}_low": score and score.value.low,
                f"{name}_high": score and score.value.high,
                f"{name}_untrained": score and score.untrained,
            }
            if metric not in (BITS, MARGIN):
                columns[f"{name}_chance"] = score and score.chance
        entries = entries_of(row, task)
        for name in _SETTINGS:
            values = dict.fromkeys(getattr(entry, name) for entry in entries)
            columns[f"{task}:{name}"] = next(iter(values)) if len(values) == 1 else None
        columns |= {f"{task}:{name}": compute_of(row, task, name) for name in _COMPUTE}
        shift = shift_of(row, task)
        columns |= {f"{task}:batch_shift_{name}": shift.get(name) for name in _SHIFT}
    return columns


def _mean(entries: Sequence[TaskScores | Mean], name: str) -> float | None:
    values = [getattr(entry, name) for entry in entries]
    return fmean(values) if values and None not in values else None
