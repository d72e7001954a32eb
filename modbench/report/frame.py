"""The results frame: a row for each run at each of its budgets. Columns are what names a run, the
metrics of `modbench.records.metrics`, the scores of downstream tasks and the figures of routed layers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from modbench.records.line import canonical_json
from modbench.records.metrics import METRICS
from modbench.records.result import Result
from modbench.records.sections import TaskScores
from modbench.report.timing.values import processor_types

#: Columns that every table of shapes has; other fields of a shape follow if they differ.
SHAPE = ("width", "layers", "heads")
#: Names of the two scores of right answers, next to a task's own metrics.
BITS, MARGIN = "answer_bits_per_byte", "answer_margin"
#: Columns of a task besides its metrics, after a colon, and those of its batch shift.
TASK_SETTINGS = ("items", "few_shot", "version", "truncated")
TASK_SHIFT = ("nats", "flipped", "items")
#: Figures of a routed layer; a column has the layer's number at its end.
LAYER = ("added", "gate_scale")
#: The column of the results themselves, which no file has.
RESULT = "_result"

_NAMED = dict.fromkeys(("shape", "plugin_sha256", "error", "flops_source"), "string")
_NAMED |= dict.fromkeys((*SHAPE, "depth"), "Int64")
_TYPES = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}


def rows_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A frame of ``rows`` with nullable types; of integers beyond 64 bits, and of mixed types, objects.
    A row may lack columns that another one has."""
    columns = dict.fromkeys(name for row in rows for name in row)
    series = {name: _series([row.get(name) for row in rows]) for name in columns}
    return pd.DataFrame(series, columns=[*columns])


def _series(values: list[Any]) -> "pd.Series[Any]":
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        kinds = {float}
    kind = kinds.pop() if len(kinds) == 1 else object
    if kind is int and any(abs(value or 0) >= 2**63 for value in values):
        kind = object
    if kind is object and all(value is None for value in values):
        return pd.Series(values, dtype="Float64")
    if kind is not int:
        return pd.Series(values, dtype=_TYPES.get(kind, "object"))
    # With None among them, pandas would pass integers through floats.
    whole = pd.Series([0 if value is None else value for value in values], dtype="Int64")
    return whole.mask(pd.Series([value is None for value in values]))


def plain(column: "pd.Series[Any]") -> list[Any]:
    """The values of ``column`` as Python's, None for those that are missing."""
    return [None if value is pd.NA else value for value in column.astype(object).tolist()]


def plain_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of ``frame`` as dictionaries, None for what is missing."""
    columns = {str(name): plain(frame[name]) for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def results_frame(
    results: Iterable[Result], times: Callable[[Result], Mapping[str, Any]] = lambda result: {}
) -> pd.DataFrame:
    """The results frame, in the order of ``results``. ``times``: the timed metrics of a result's
    scheme. Nothing is rounded; a missing figure is NA."""
    results = list(results)
    shapes = shape_columns([result.model for result in results])
    frame = rows_frame(
        [
            {**_names(result, shape), **_figures(result, times(result)), RESULT: result}
            for result, shape in zip(results, shapes, strict=True)
        ]
    )
    # A column without any value has its type, too.
    return frame.astype(
        {of: kind for of, kind in _NAMED.items() if of in frame and frame[of].isna().all()}
    )


def _names(result: Result, shape: Mapping[str, Any]) -> dict[str, Any]:
    run = result.run
    scheme, _, size = result.label.partition("/")
    names = {
        "suite": result.suite["name"],
        "suite_version": result.suite["version"],
        "label": result.label,
        "scheme": scheme,
        "shape": size or None,
        "router": run.router.name,
        "options": canonical_json(run.router.options),
        "plugin_sha256": run.router.plugin_sha256,
        **{name: shape.get(name) for name in SHAPE},
    }
    programs = result.record.programs or {}
    return names | {
        **{name: value for name, value in shape.items() if name not in names},
        **{f"compiled_{name}": count for name, count in programs.items()},
        "depth": result.depth,
        "budget": result.budget,
        "seed": result.seed,
        "learning_rate": result.learning_rate,
        "precision": run.train.precision,
        "processor": "; ".join(processor_types([result])),
        "status": result.status,
        "error": result.error,
        "key": result.key,
        "flops_source": result.flops_source,
        "corpus_sha256": result.data["sha256"],
    }


def _figures(result: Result, times: Mapping[str, Any]) -> dict[str, Any]:
    metrics = result.metrics
    spent = metrics.get("train_flops")
    figures: dict[str, Any] = {"budget_spent": None if spent is None else spent / result.budget}
    figures |= {name: metrics.get(name, times.get(name)) for name in METRICS}
    for layer in result.layers:
        for name in LAYER:
            if (value := getattr(layer, name)) is not None:
                figures[f"{name}_layer_{layer.layer}"] = float(value)
    for task, entry in result.downstream.items():
        figures |= _task(task, entry)
    return figures


def _task(task: str, entry: TaskScores) -> dict[str, Any]:
    """The columns of ``task``: ``TASK:METRIC`` is the score; suffixes ``_stderr`` (over items),
    ``_chance`` and ``_untrained``; then settings and the batch shift."""
    columns: dict[str, Any] = {}
    answers = {name: score for name in (BITS, MARGIN) if (score := getattr(entry, name))}
    for metric, score in (entry.metrics | answers).items():
        name = f"{task}:{metric}"
        columns |= {name: score.value, f"{name}_stderr": score.stderr}
        columns[f"{name}_untrained"] = score.untrained
        if metric not in answers:
            columns[f"{name}_chance"] = score.chance
    columns |= {f"{task}:{name}": getattr(entry, name) for name in TASK_SETTINGS}
    shift = {f"{task}:batch_shift_{of}": getattr(entry.batch_shift, of, None) for of in TASK_SHIFT}
    return columns | shift


def differing(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which ``models`` differ, in the order of `SHAPE`, then by name."""
    names = sorted({name for model in models for name in model} - {*SHAPE})
    values = {name: {canonical_json(model.get(name)) for model in models} for name in (*SHAPE, *names)}
    return [name for name, of_name in values.items() if len(of_name) > 1]


def shape_columns(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of each of ``models``: `SHAPE`, then the other fields in which they differ."""
    columns = list(dict.fromkeys((*SHAPE, *differing(models))))
    return [{name: _plain(model.get(name)) for name in columns} for model in models]


def _plain(value: Any) -> Any:
    return canonical_json(value) if isinstance(value, dict | list) else value
