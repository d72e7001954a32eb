"""Routed layers over the seeds of a row: remarks on those that add next to nothing, and columns of
leaderboard.csv."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from modbench.analysis.idle_layers import is_idle, layer_line
from modbench.records.result import Result

#: Fields of a layer, in the order of the columns.
FIELDS = ("added", "gate_scale")


def values(records: Iterable[Result]) -> dict[int, dict[str, list[float]]]:
    """The values of `FIELDS` by layer, one for each record that has them."""
    by_layer: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for entry in record.layers:
            for name in FIELDS:
                if (value := getattr(entry, name)) is not None:
                    by_layer[entry.layer][name].append(value)
    return {layer: dict(by_layer[layer]) for layer in sorted(by_layer)}


def idle_layers(records: Sequence[Result]) -> list[str]:
    """A remark for each layer that adds next to nothing in any of ``records``, one per seed, with the
    figures of the seed in which it adds least."""
    remarks = []
    entries = [entry for record in records for entry in record.layers if entry.added is not None]
    for layer in sorted({entry.layer for entry in entries}):
        of_layer = sorted((e for e in entries if e.layer == layer), key=lambda entry: entry.added or 0)
        idle = sum(is_idle(entry.added) for entry in of_layer)
        if idle:
            of_seeds = f", in {idle} of {len(of_layer)} seeds" if len(of_layer) > 1 else ""
            remarks.append(layer_line(**dict(of_layer[0])) + of_seeds)
    return remarks


def csv_columns(records: Sequence[Result], layers: Iterable[tuple[int, str]]) -> dict[str, Any]:
    """The columns ``added_layer_N`` and ``gate_scale_layer_N`` of a row, means over its seeds, the same
    for all rows of a table. ``layers``: those of the table, with the field."""
    by_layer = values(records)
    columns = {}
    for layer, name in layers:
        numbers = by_layer.get(layer, {}).get(name)
        columns[f"{name}_layer_{layer}"] = fmean(numbers) if numbers else None
    return columns
