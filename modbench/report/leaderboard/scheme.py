"""Schemes and shapes of rows: the name of a scheme, and the columns of a shape."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modbench.records.line import canonical_json, sha256
from modbench.records.result import Result

#: Columns that every table of shapes has; other fields follow if they differ.
SHAPE = ("width", "layers", "heads")


def split_label(label: str) -> tuple[str, str]:
    """The labels of the scheme and of its shape in the label of a row; "" in a suite of one shape."""
    scheme, _, shape = label.partition("/")
    return scheme, shape


def scheme_key(result: Result) -> str:
    """Identity of a scheme, equal at all sizes and budgets: label, router, settings of training."""
    stated = result.run.as_json()
    train = {name: value for name, value in stated["train"].items() if name != "learning_rate"}
    schedule = {name: value for name, value in stated["schedule"].items() if name != "budgets"}
    parts = {"label": result.scheme, "router": stated["router"], "train": train, "schedule": schedule}
    return canonical_json(parts)


def scheme_names(results: Iterable[Result]) -> dict[str, str]:
    """The name of each scheme by its key: its label, with the start of a hash if two share it."""
    labels: dict[str, set[str]] = defaultdict(set)
    for result in results:
        labels[result.scheme].add(scheme_key(result))
    return {
        key: f"{label} [{sha256(key)[:6]}]" if len(keys) > 1 else label
        for label, keys in labels.items()
        for key in keys
    }


def differing(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which ``models`` differ, in the order of `SHAPE`, then by name."""
    names = sorted({name for model in models for name in model} - {*SHAPE})
    values = {name: {canonical_json(model.get(name)) for model in models} for name in (*SHAPE, *names)}
    return [name for name, of_name in values.items() if len(of_name) > 1]


def shape_columns(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of each of ``models``: `SHAPE`, then the other fields in which they differ."""
    columns = list(dict.fromkeys((*SHAPE, *differing(models))))
    return [{name: _plain(model.get(name)) for name in columns} for model in models]


def with_shape(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` of timings, whose ``label`` has that of the shape and whose ``model`` is JSON, with the
    label of the scheme and the shape in columns."""
    rows_of_shape = []
    for row, shape in zip(rows, shape_columns([json.loads(row["model"]) for row in rows]), strict=True):
        scheme, label = split_label(row["label"])
        rows_of_shape.append(
            {"label": scheme, "shape": label or None} | shape | {**row, "label": scheme}
        )
    return rows_of_shape


def shape_name(model: Mapping[str, Any]) -> str:
    """Width and depth, such as 64 x 4."""
    return f"{model.get('width', '?')} x {model.get('layers', '?')}"


def _plain(value: Any) -> Any:
    return canonical_json(value) if isinstance(value, dict | list) else value
