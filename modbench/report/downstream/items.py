"""Comparisons of schemes on the items of downstream tasks: paired differences, and signal-to-noise
ratios. N items.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from modbench.analysis.items import SignalToNoise, paired_bootstrap, signal_to_noise
from modbench.analysis.noise import Array
from modbench.report.downstream.scores import (
    BITS,
    comparable,
    entries_of,
    metrics_of,
    score_of,
    tasks_of,
    values_of,
)
from modbench.report.leaderboard.entry import Entry
from modbench.report.leaderboard.row import Row
from modbench.report.table import Table, escaped

#: Router of the scheme that others are compared with, if it was scored.
DENSE = "vanilla"
#: Scores of single items that are compared, and their names in the table.
_BY_ITEM = {"correct": "accuracy", "bits_per_byte": "bits/byte of the right answer"}
_DIFFERENCES = (
    "on the same items (accuracy: higher is better; bits per byte: lower), with the 95 % interval of a "
    "paired bootstrap over items; * where it excludes 0. Scores of an item are means over seeds; the "
    "interval leaves out the noise between seeds."
)
_SIGNAL = (
    "Signal: the largest difference between schemes over their mean. Noise: the standard deviation {of} "
    "over their mean; the noise between items is not included. Below 1, the task does not separate the "
    "schemes."
)
_CHECKPOINTS = "of a run's last {count} checkpoints (root mean square over runs)"
_SEEDS = "between seeds (root mean square over schemes)"
_NO_NOISE = (
    "Signal-to-noise ratios need several seeds, or checkpoints: [measure] downstream_checkpoints."
)


def comparison_tables(entries: Sequence[Entry]) -> Iterator[str | Table]:
    """The tables and paragraphs on schemes compared item by item; none for fewer than two schemes."""
    if len(entries) < 2:
        return
    reference = _reference(entries)
    others = [entry for entry in entries if entry is not reference]
    rows = [entry.row for entry in entries]
    lines = [
        (task, name, *cells)
        for task in tasks_of(rows)
        if comparable(rows, task)
        for column, name in _BY_ITEM.items()
        if any(cells := [_difference(entry.row, reference.row, task, column) for entry in others])
    ]
    if lines:
        yield f"Difference from {escaped(reference.row.label)} {_DIFFERENCES}"
        headings = ("task", "score", *(entry.row.label for entry in others))
        yield Table(headings, [[cell or "-" for cell in line] for line in lines], left=(0, 1))
    yield from _signal_table(rows)


def _reference(entries: Sequence[Entry]) -> Entry:
    """The dense scheme; without one, the first of the ranked ones."""
    dense = [entry for entry in entries if entry.row.run.router.name == DENSE]
    if dense:
        return min(dense, key=lambda entry: entry.row.label)
    return min(entries, key=lambda entry: (entry.position is None, entry.position or 0))


def _difference(row: Row, reference: Row, task: str, column: str) -> str:
    """``row`` minus ``reference`` with its interval; empty if their items can't be compared."""
    scores_N = _items_of(row, task, column)
    others_N = _items_of(reference, task, column)
    if scores_N is None or others_N is None or len(scores_N) != len(others_N):
        return ""
    if np.isnan(scores_N - others_N).all():
        return ""
    paired = paired_bootstrap(scores_N, others_N)
    low, high = paired.interval
    mark = "" if low <= 0 <= high else "*"
    return f"{paired.difference:z.3f}{mark} ({low:z.3f} to {high:z.3f})"


def _items_of(row: Row, task: str, column: str) -> Array | None:
    """The scores (N,) of single items, the mean over seeds; None if a seed has none."""
    seeds = [entry.get("by_item") for entry in entries_of(row, task)]
    columns = [np.array(items[column], dtype=np.float64) for items in seeds if items]
    if not columns or len(columns) < len(seeds) or len({*map(len, columns)}) > 1:
        return None
    mean_N: Array = np.mean(columns, axis=0)
    return mean_N


def _signal_table(rows: Sequence[Row]) -> Iterator[str | Table]:
    """Signal, noise and their ratio of each task; a sentence where there is nothing to compute noise
    from."""
    tasks = [task for task in tasks_of(rows) if comparable(rows, task)]
    asked = [(task, name) for task in tasks for name in _names(rows, task)]
    count = max((len(run) for pair in asked for run in _checkpoints(rows, *pair)), default=0)
    lines = [
        (task, metric, f"{ratio.signal:.3f}", f"{ratio.noise:.3f}", _ratio(ratio))
        for task, metric in asked
        if (ratio := _signal(rows, task, metric, seeds=not count))
    ]
    if not lines:
        yield _NO_NOISE
        return
    yield Table(("task", "score", "signal", "noise", "signal-to-noise"), lines, left=(0, 1))
    yield _SIGNAL.format(of=_CHECKPOINTS.format(count=count) if count else _SEEDS)


def _names(rows: Sequence[Row], task: str) -> list[str]:
    """The main metric of ``task``, and bits per byte of the right answer, where it has them."""
    main, *others = metrics_of(rows, task)
    return [main, *(name for name in others if name == BITS)]


def _ratio(signal: SignalToNoise) -> str:
    if math.isnan(signal.ratio):
        return "- (all scores are equal)"
    return f"{signal.ratio:.1f}{' (below 1)' if signal.weak else ''}"


def _signal(rows: Sequence[Row], task: str, metric: str, *, seeds: bool) -> SignalToNoise | None:
    """The signal-to-noise ratio, with noise of ``seeds`` or of checkpoints; None where there are fewer
    than two schemes, or no noise."""
    scores = [score.value.center for row in rows if (score := score_of(row, task, metric))]
    runs = (
        [[value["value"] for value in values_of(row, task, metric)] for row in rows]
        if seeds
        else _checkpoints(rows, task, metric)
    )
    runs = [run for run in runs if len(run) > 1]
    if len(scores) < 2 or not runs:
        return None
    positive = sum(scores) > 0 and sum(map(sum, runs)) > 0
    return signal_to_noise(scores, *runs, relative=positive)


def _checkpoints(rows: Sequence[Row], task: str, metric: str) -> list[list[float]]:
    """The scores of each run's last checkpoints, the trained model last, of runs that have them."""
    values = [value for row in rows for value in values_of(row, task, metric)]
    runs = [[*value["checkpoints"], value["value"]] for value in values if "checkpoints" in value]
    return [run for run in runs if None not in run]
