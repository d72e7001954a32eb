"""Differences between the ranked rows of a leaderboard: those that the suite states, or those to the
dense row and to the best one of their comparison. Further pairs have an interval and no verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

from modbench.analysis.difference import INTERIM, MARGIN, Difference, compare, judge, row_noise
from modbench.analysis.noise import Noise
from modbench.records.metrics import Metric
from modbench.report.leaderboard.entry import Entry, dense_entry
from modbench.report.leaderboard.row import Row
from modbench.report.timing.values import processor_types

#: Marks of the rows that may be the best one.
BEST, NOT_SEPARABLE = "best", "not separable"
#: Families of comparisons; a suite that states its pairs has its own.
TO_DENSE, TO_BEST = "dense", "best"

#: Ranked rows of a comparison beyond which they are compared with the dense and the best row only: all
#: pairs would be thousands.
MOST_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class RowPair:
    """``row`` minus ``other``. ``family``: the comparisons for whose number the verdict is adjusted;
    empty: it is not tested."""

    row: Row
    other: Row
    comparison: int
    family: str
    difference: Difference
    same_processor: bool  #: in all pairs of runs of one seed
    margin: float | None  #: within which the two are equivalent; None: not tested


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The pairs of all comparisons of a page, and the noise of each comparison."""

    pairs: Sequence[RowPair] = ()
    noise: dict[int, Noise] = field(default_factory=dict)  #: of one run, by comparison

    def of(self, family: str, comparison: int | None = None) -> list[RowPair]:
        """The pairs of ``family``, in one comparison or in all."""
        return [
            pair
            for pair in self.pairs
            if pair.family == family and comparison in (None, pair.comparison)
        ]

    @property
    def families(self) -> list[str]:
        """The families with a test."""
        tested = (pair.family for pair in self.pairs if pair.difference.p is not None)
        return [name for name in dict.fromkeys(tested) if name]

    def to(self, entry: Entry, family: str) -> RowPair | None:
        """The pair of ``entry`` in `TO_DENSE` or `TO_BEST`."""
        return next((pair for pair in self.of(family) if pair.row is entry.row), None)

    def group(self, entry: Entry) -> str:
        """`BEST`; `NOT_SEPARABLE`: not worse than the best row after adjustment; empty for other rows,
        and where the data allow no verdict."""
        to_best = self.of(TO_BEST, entry.comparison)
        if entry.position is None or any(pair.difference.verdict is None for pair in to_best):
            return ""
        if entry.position == 1:
            return BEST if to_best else ""
        pair = self.to(entry, TO_BEST)
        return NOT_SEPARABLE if pair and pair.difference.verdict != "worse" else ""


def differences_of(comparisons: Sequence[Sequence[Entry]], metric: Metric) -> Differences:
    """The differences in ``metric`` between the ranked entries of each comparison, each scheme at its
    best size. An exact metric has none. The noise is that of all rows that can be ranked, whatever their
    size, or of the rows that the suite compares."""
    if metric.kind != "quality":
        return Differences()
    pairs: list[RowPair] = []
    noise = {}
    for entries in comparisons:
        ranked = sorted((e for e in entries if e.position), key=lambda entry: entry.position or 0)
        if not ranked:
            continue
        budget, stated = ranked[0].row.budget, ranked[0].row.first.suite["compare"]
        here = [pair for pair in stated if pair["budget"] == budget]
        compared = {pair[side] for pair in here for side in ("a", "b")}
        rows = [entry.row for entry in entries if not entry.unranked]
        of_noise = [row for row in rows if row.first.label in compared] or rows
        number = ranked[0].comparison
        noise[number] = row_noise({row.label: row.by_seed(metric.name) for row in of_noise})
        tested = _stated(ranked, here) if stated else _tested(ranked, dense_entry(entries), metric)
        untold = INTERIM if any(entry.row.first.suite["left"] for entry in ranked) else ""
        for row, other, family, margin in (*tested, *_others(ranked, tested, metric)):
            pair = _pair(row, other, metric, noise[number], margin, untold)
            if pair:
                pairs.append(replace(pair, comparison=number, family=family))
    return Differences(pairs=_judged(pairs, metric), noise=noise)


_Wanted = tuple[Row, Row, str, float | None]


def _stated(ranked: Sequence[Entry], stated: Sequence[dict[str, Any]]) -> list[_Wanted]:
    """The pairs of the suite whose rows are ranked."""
    rows = {entry.row.first.label: entry.row for entry in ranked}
    return [
        (rows[of["a"]], rows[of["b"]], of["role"], of.get("margin"))
        for of in stated
        if {of["a"], of["b"]} <= rows.keys()
    ]


def _tested(ranked: Sequence[Entry], dense: Entry | None, metric: Metric) -> list[_Wanted]:
    """Each row with the dense and with the best one."""
    rows = [entry.row for entry in ranked]
    margin = margin_of(metric)
    wanted: list[_Wanted] = []
    if dense and dense.position:
        wanted += [(row, dense.row, TO_DENSE, margin) for row in rows if row is not dense.row]
    return wanted + [(row, rows[0], TO_BEST, margin) for row in rows[1:]]


def _others(ranked: Sequence[Entry], tested: Sequence[_Wanted], metric: Metric) -> Iterator[_Wanted]:
    """All pairs but the ``tested`` ones, the better row first; none of many rows."""
    rows = [entry.row for entry in ranked]
    known = {frozenset((row.label, other.label)) for row, other, *_ in tested}
    for row, other in combinations(rows, 2) if len(rows) <= MOST_ROWS else ():
        if frozenset((row.label, other.label)) not in known:
            yield row, other, "", margin_of(metric)


def margin_of(metric: Metric) -> float | None:
    """The largest difference that counts as none; None for a metric that is no loss in nats."""
    return MARGIN if metric.unit == "nats/token" else None


def _pair(
    row: Row, other: Row, metric: Metric, noise: Noise, margin: float | None, untold: str
) -> RowPair | None:
    """The pair if both rows have a seed in common."""
    ours, theirs = row.by_seed(metric.name), other.by_seed(metric.name)
    spreads = noise.of(row.label), noise.of(other.label)
    difference = compare(ours, theirs, spreads, noise.pooled if noise.is_pooled else None, margin)
    if difference is None:
        return None
    equal = [
        len(processor_types(record for record in (*row.ok, *other.ok) if record.seed == seed)) == 1
        for seed in ours.keys() & theirs.keys()
    ]
    return RowPair(
        row=row,
        other=other,
        comparison=0,
        family="",
        difference=replace(difference, untold=untold or difference.untold),
        same_processor=all(equal),
        margin=margin,
    )


def _judged(pairs: Sequence[RowPair], metric: Metric) -> list[RowPair]:
    """``pairs`` with the verdicts of each family, whose comparisons may stand on several tables."""
    better: Literal["lower", "higher"] = "lower" if metric.direction == "lower" else "higher"
    judged: dict[int, Difference] = {}
    for family in {pair.family for pair in pairs} - {""}:
        numbers = [number for number, pair in enumerate(pairs) if pair.family == family]
        told = judge([pairs[number].difference for number in numbers], better)
        judged |= dict(zip(numbers, told, strict=True))
    return [
        replace(pair, difference=judged.get(number, pair.difference))
        for number, pair in enumerate(pairs)
    ]
