"""Differences between the ranked rows of a leaderboard, paired by seed: to the dense row, to the best
one of their comparison, and between all others."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from modbench.analysis.difference import MARGIN, Difference, compare, judge, pooled_noise
from modbench.analysis.noise import Spread
from modbench.records.metrics import Metric
from modbench.report.leaderboard.entry import Entry, dense_entry
from modbench.report.leaderboard.row import Row
from modbench.report.processor import processor_types

#: Marks of the rows that may be the best one.
BEST, NOT_SEPARABLE = "best", "not separable"

#: Ranked rows of a comparison beyond which they are compared with the dense and the best row only: all
#: pairs would be thousands.
MOST_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class RowPair:
    """``row`` minus ``other``. ``family``: the comparisons for whose number the verdict is adjusted."""

    row: Row
    other: Row
    comparison: int
    family: str
    difference: Difference
    same_processor: bool  #: in all pairs of runs of one seed


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The pairs of each family, on all comparisons of a page, and the noise of each comparison."""

    dense: Sequence[RowPair] = ()  #: each row minus the dense one
    best: Sequence[RowPair] = ()  #: each row minus the best one
    others: Sequence[RowPair] = ()  #: pairs of up to `MOST_ROWS` other rows, the better one first
    noise: dict[int, Spread | None] = field(default_factory=dict)  #: of one run, by comparison

    def to_dense(self, entry: Entry) -> RowPair | None:
        return next((pair for pair in self.dense if pair.row is entry.row), None)

    def to_best(self, entry: Entry) -> RowPair | None:
        return next((pair for pair in self.best if pair.row is entry.row), None)

    def group(self, entry: Entry) -> str:
        """`BEST`; `NOT_SEPARABLE`: not worse than the best row after adjustment; empty for other rows,
        and without repeated runs."""
        if entry.position is None or self.noise.get(entry.comparison) is None:
            return ""
        if entry.position == 1:
            return BEST
        pair = self.to_best(entry)
        return "" if pair and pair.difference.verdict == "worse" else NOT_SEPARABLE


def differences_of(comparisons: Sequence[Sequence[Entry]], metric: Metric) -> Differences:
    """The differences in ``metric`` between the ranked entries of each comparison, each scheme at its
    best size. An exact metric has none. The noise is that of all rows that can be ranked, whatever their
    size."""
    if metric.kind != "quality":
        return Differences()
    pairs: dict[str, list[RowPair]] = {"dense": [], "best": [], "other pairs": []}
    noise = {}
    for entries in comparisons:
        ranked = sorted((e for e in entries if e.position), key=lambda entry: entry.position or 0)
        if not ranked:
            continue
        number, dense = ranked[0].comparison, dense_entry(entries)
        noise[number] = pooled_noise(e.row.by_seed(metric.name) for e in entries if not e.unranked)
        rows = [entry.row for entry in ranked]
        wanted = {"best": [(row, rows[0]) for row in rows[1:]]}
        if dense and dense.position:
            wanted["dense"] = [(row, dense.row) for row in rows if row is not dense.row]
        without = [row for row in rows if not dense or row is not dense.row]
        few = len(without) <= MOST_ROWS
        wanted["other pairs"] = list(combinations(without, 2)) if few else []
        for family, of_family in wanted.items():
            for row, other in of_family:
                if pair := _pair(row, other, metric, noise[number], number, family):
                    pairs[family].append(pair)
    judged = {family: _judged(of_family, metric) for family, of_family in pairs.items()}
    return Differences(
        dense=judged["dense"], best=judged["best"], others=judged["other pairs"], noise=noise
    )


def margin_of(metric: Metric) -> float | None:
    """The largest difference that counts as none; None for a metric that is no loss in nats."""
    return MARGIN if metric.unit == "nats/token" else None


def _pair(
    row: Row, other: Row, metric: Metric, noise: Spread | None, comparison: int, family: str
) -> RowPair | None:
    """The pair if both rows have a seed in common."""
    ours, theirs = row.by_seed(metric.name), other.by_seed(metric.name)
    difference = compare(ours, theirs, noise, margin_of(metric))
    if difference is None:
        return None
    equal = [
        len(processor_types(record for record in (*row.ok, *other.ok) if record.seed == seed)) == 1
        for seed in ours.keys() & theirs.keys()
    ]
    return RowPair(
        row=row,
        other=other,
        comparison=comparison,
        family=family,
        difference=difference,
        same_processor=all(equal),
    )


def _judged(pairs: Sequence[RowPair], metric: Metric) -> list[RowPair]:
    lower = metric.direction == "lower"
    judged = judge([pair.difference for pair in pairs], "lower" if lower else "higher")
    return [replace(pair, difference=minus) for pair, minus in zip(pairs, judged, strict=True)]
