"""The table: ranked rows, and its CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modbench.report.metrics import METRICS, Metric, ranking_metric
from modbench.report.record import AuditRecord, CellRecord, canonical_json
from modbench.report.row import Row, Value, machine_differences, rows_of
from modbench.report.table import csv_table


@dataclass(frozen=True)
class Entry:
    """A row and its rank; if ``rank`` is None, ``note`` gives the reason."""

    row: Row
    comparison: int
    rank: int | None
    note: str


@dataclass(frozen=True)
class Leaderboard:
    """All rows, comparison by comparison, ranked ones first.

    A comparison holds rows of equal budget, model shape and data (all of `Row.conditions`); rows are
    ranked within it. A row's rank is one more than the number of rows whose 95 % interval over seeds
    lies wholly on the better side of its own, so rows with overlapping intervals may share a rank. If
    all rows have one seed there are no intervals, and the rank is only the order of the figures.
    """

    entries: tuple[Entry, ...]
    rank_by: str
    #: Differences between machines; timed metrics are hidden if there are any.
    machine_differences: tuple[str, ...]

    @classmethod
    def of(
        cls,
        records: Sequence[CellRecord],
        rank_by: str = "heldout_loss",
        audits: Mapping[str, AuditRecord] | None = None,
    ) -> "Leaderboard":
        """The table of ``records`` and of the ``audits`` that they refer to. Raises UserError:
        ``rank_by`` is unknown, timed, or has no better side."""
        criterion = ranking_metric(rank_by)
        rows = rows_of(records, audits)
        groups: dict[tuple[int, str], list[Row]] = {}
        for row in rows:
            conditions = row.cell["train"]["budget"], canonical_json(row.conditions(rank_by))
            groups.setdefault(conditions, []).append(row)
        entries = [
            entry
            for number, conditions in enumerate(sorted(groups), start=1)
            for entry in _ranked(groups[conditions], number, criterion)
        ]
        return cls(tuple(entries), rank_by, tuple(machine_differences(rows)))

    @property
    def comparisons(self) -> list[list[Entry]]:
        """The entries of each comparison."""
        numbers = sorted({entry.comparison for entry in self.entries})
        return [[e for e in self.entries if e.comparison == number] for number in numbers]

    def value(self, row: Row, name: str) -> Value | None:
        """The metric ``name`` of ``row``; None for timed metrics if machines differ."""
        if METRICS[name].kind == "timed" and self.machine_differences:
            return None
        return row.value(name)

    def csv(self) -> str:
        """The table as CSV, all metrics at full precision."""
        return csv_table([self._line(entry) for entry in self.entries])

    def _line(self, entry: Entry) -> dict[str, Any]:
        row, router = entry.row, entry.row.cell["router"]
        metrics: dict[str, Any] = {}
        for name in METRICS:
            metrics |= _columns(name, self.value(row, name))
        return {
            "comparison": entry.comparison,
            "rank": entry.rank,
            "label": row.label,
            "status": row.status,
            "seeds": len(row.ok),
            "audit": row.audit,
            "note": entry.note or None,
            "router": router["name"],
            "budget": row.cell["train"]["budget"],
            "flops_source": row.flops_source,
            **metrics,
            "plugin_sha256": router["plugin_sha256"],
            "options": canonical_json(router["options"]),
            **{part: canonical_json(row.cell[part]) for part in ("model", "data", "train", "measure")},
            "corpus_sha256": row.records[0].data["sha256"],
            "records": " ".join(record.key for record in row.records),
        }


def _columns(name: str, value: Value | None) -> dict[str, Any]:
    """The columns of a metric. exact: NAME (``low..high`` if seeds disagree); quality: NAME (mean over
    seeds), NAME_low and NAME_high (95 % t-interval); timed: NAME_median, _iqr, _n, _stable, _loaded."""
    kind = METRICS[name].kind
    if kind == "timed":
        parts = {"median": "center", "iqr": "iqr", "n": "n", "stable": "stable", "loaded": "loaded"}
        return {f"{name}_{part}": getattr(value, of, None) for part, of in parts.items()}
    if kind == "quality":
        parts = {name: "center", f"{name}_low": "low", f"{name}_high": "high"}
        return {column: getattr(value, of, None) for column, of in parts.items()}
    if value is None or value.low == value.high:
        return {name: value and value.low}
    return {name: f"{value.low}..{value.high}"}


def _span(value: Value, criterion: Metric) -> tuple[float, float]:
    """The interval of ``value``, better end first, negated if higher is better."""
    low = value.center if value.low is None else value.low
    high = value.center if value.high is None else value.high
    return (low, high) if criterion.direction == "lower" else (-high, -low)


def _ranked(rows: list[Row], comparison: int, criterion: Metric) -> list[Entry]:
    """Entries of one comparison: ranked ones by rank, figure and label, then unranked ones."""
    spans: dict[str, tuple[float, float]] = {}
    reasons: dict[str, str] = {}
    for row in rows:
        value = row.value(criterion.name)
        if row.why_unranked:
            reasons[row.label] = row.why_unranked
        elif value is None:
            reasons[row.label] = f"{criterion.name} was not measured"
        elif not all(criterion.name in record.metrics for record in row.ok):
            reasons[row.label] = f"{criterion.name} was not measured in all seeds"
        else:
            spans[row.label] = _span(value, criterion)
    single = [row.label for row in rows if row.label in spans and len(row.ok) == 1]
    if criterion.kind == "quality" and len(single) < len(spans):
        for label in single:
            del spans[label]
            reasons[label] = "one seed gives no interval to rank among rows of several seeds"
    entries = []
    for row in rows:
        rank = None
        if row.label in spans:
            rank = 1 + sum(high < spans[row.label][0] for _, high in spans.values())
        notes = [reasons.get(row.label, row.audit_failures), *row.remarks]
        entries.append(Entry(row, comparison, rank, "; ".join(filter(None, notes))))

    def order(entry: Entry) -> tuple[Any, ...]:
        if entry.rank is None:
            return (1,)
        return 0, entry.rank, sum(spans[entry.row.label]), entry.row.label

    return sorted(entries, key=order)
