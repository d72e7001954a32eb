"""The table: ranked rows, and its CSV."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modbench.analysis.comparison import shared_ranks
from modbench.records.metrics import METRICS, Metric, ranking_metric
from modbench.records.record import AuditRecord, canonical_json
from modbench.records.result import Result
from modbench.report.downstream.scores import csv_columns, metrics_of, tasks_of
from modbench.report.layers import csv_columns as layer_columns
from modbench.report.layers import values as layer_values
from modbench.report.leaderboard.row import Row, Value, rows_of
from modbench.report.leaderboard.scheme import scheme_names, shape_columns, split_label
from modbench.report.leaderboard.times import timed_values
from modbench.report.table import Table
from modbench.report.timing.table import TimingTable


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row and its rank. ``rank`` is None for a row that may not be ranked, with the reason in
    ``unranked``, and for sizes of a scheme that aren't its best. ``note``: the reason, and remarks."""

    row: Row
    scheme: str  #: name of the scheme, without shape and budget
    comparison: int
    rank: int | None
    note: str
    unranked: str
    best_size: bool = True  #: of the scheme, among the sizes that can be ranked
    sizes: int = 1  #: of the scheme that can be ranked
    edge: str = ""  #: smallest or largest, if the best of several sizes is that


@dataclass(frozen=True)
class Leaderboard:
    """All rows, comparison by comparison, ranked ones first.

    A comparison holds rows of equal budget and data (all of `Row.conditions`); rows are ranked within
    it, and those whose 95 % intervals over seeds overlap share a rank. If there are several shapes, each
    scheme is ranked at the size of its best mean. Without intervals (one seed) the rank is the order of
    the figures. Rows of isoFLOP suites have no rank here: their optima have.
    """

    entries: tuple[Entry, ...]
    rank_by: str

    @classmethod
    def of(
        cls,
        records: Sequence[Result],
        rank_by: str = "heldout_loss",
        audits: Mapping[str, AuditRecord] | None = None,
        times: TimingTable | None = None,
    ) -> "Leaderboard":
        """The table of ``records``, of the ``audits`` that they refer to, and of the ``times`` of their
        schemes. Raises UserError: ``rank_by`` is unknown, timed, or has no better side."""
        criterion = ranking_metric(rank_by)
        rows = rows_of(records, audits, timed_values(times))
        groups: dict[tuple[int, str], list[Row]] = defaultdict(list)
        for row in rows:
            conditions = row.budget, canonical_json(row.conditions(rank_by))
            groups[conditions].append(row)
        names = scheme_names(row.first for row in rows)
        entries = [
            entry
            for number, conditions in enumerate(sorted(groups), start=1)
            for entry in _Ranking(groups[conditions], number, criterion, names).entries()
        ]
        return cls(tuple(entries), rank_by)

    @property
    def comparisons(self) -> list[list[Entry]]:
        """The entries of each comparison."""
        numbers = sorted({entry.comparison for entry in self.entries})
        return [[e for e in self.entries if e.comparison == number] for number in numbers]

    def table(self, size: Callable[[Entry], Mapping[str, Any]] | None = None) -> Table:
        """All metrics and downstream scores at full precision. ``size``: columns on the place of an
        entry among the sizes of its scheme; by default ``best_size`` and ``sizes``."""
        size = size or (lambda entry: {"best_size": entry.best_size, "sizes": entry.sizes})
        shapes = shape_columns([entry.row.model for entry in self.entries])
        rows = [entry.row for entry in self.entries]
        tasks = {task: metrics_of(rows, task) for task in tasks_of(rows)}
        lines = [self._line(*pair, size) for pair in zip(self.entries, shapes, strict=True)]
        held = layer_values(record for row in rows for record in row.ok)
        layers = [(layer, name) for layer, of in held.items() for name in of]
        return Table.of(
            [
                line | layer_columns(row.ok, layers) | csv_columns(row, tasks)
                for line, row in zip(lines, rows, strict=True)
            ]
        )

    def _line(
        self, entry: Entry, shape: dict[str, Any], size: Callable[[Entry], Mapping[str, Any]]
    ) -> dict[str, Any]:
        row, run = entry.row, entry.row.run
        metrics: dict[str, Any] = {}
        for name in METRICS:
            metrics |= _columns(name, row.value(name))
        columns = {
            "comparison": entry.comparison,
            "rank": entry.rank,
            "label": entry.scheme,
            "status": row.status,
            "seeds": len(row.ok),
            "audit": row.audit,
            "note": entry.note or None,
            "router": run.router.name,
            "budget": row.budget,
            "budget_spent": row.budget_spent,
            "shares_trunk": run.schedule.shares_trunk,
            "learning_rate": run.train.learning_rate,
            "shape": split_label(row.first.label)[1] or None,
        }
        return {
            **columns,
            **{name: value for name, value in shape.items() if name not in columns},
            **size(entry),
            "flops_source": row.flops_source,
            **metrics,
            "plugin_sha256": run.router.plugin_sha256,
            "options": canonical_json(run.router.options),
            **{
                part: canonical_json(row.first.record.run[part])
                for part in ("model", "data", "train", "schedule")
            },
            "measure": canonical_json(row.settings),
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


@dataclass(frozen=True)
class _Ranking:
    """The rows of one comparison."""

    rows: Sequence[Row]
    comparison: int
    criterion: Metric
    names: Mapping[str, str]  #: of schemes, by key

    @cached_property
    def spans(self) -> dict[str, tuple[float, float]]:
        """The interval of each row that was measured, by label: better end first, negated if higher is
        better."""
        spans = {}
        for row in self.rows:
            if value := row.value(self.criterion.name):
                low = value.center if value.low is None else value.low
                high = value.center if value.high is None else value.high
                lower = self.criterion.direction == "lower"
                spans[row.label] = (low, high) if lower else (-high, -low)
        return spans

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why each row cannot be ranked, by label; empty if it can."""
        reasons = {row.label: self.why_unranked(row) for row in self.rows}
        usable = [row for row in self.rows if not reasons[row.label]]
        single = [row.label for row in usable if len(row.ok) == 1]
        if self.criterion.kind == "quality" and len(single) < len(usable) and not self.is_isoflop:
            why = "one seed gives no interval to rank among rows of several seeds"
            reasons |= dict.fromkeys(single, why)
        return reasons

    def why_unranked(self, row: Row) -> str:
        """Why ``row`` cannot be ranked, whatever the other rows are."""
        name = self.criterion.name
        if row.why_unranked:
            return row.why_unranked
        if row.label not in self.spans:
            return f"{name} was not measured"
        if not all(name in record.metrics for record in row.ok):
            return f"{name} was not measured in all seeds"
        return ""

    @property
    def is_isoflop(self) -> bool:
        return any(record.isoflop for row in self.rows for record in row.records)

    def entries(self) -> list[Entry]:
        """Ranked entries by rank, figure and label, then those that may not be ranked; at last the sizes
        that aren't the best of their scheme."""
        if self.is_isoflop:
            return [self.entry(row, None) for row in self.rows]
        if len({canonical_json(row.model) for row in self.rows}) == 1:
            ranks = shared_ranks(self._usable(self.rows))
            return self.ordered(self.entry(row, ranks.get(row.label)) for row in self.rows)
        schemes: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            schemes[row.scheme_key].append(row)
        usable = {key: [r for r in rows if not self.reasons[r.label]] for key, rows in schemes.items()}
        best = [min(usable[key] or rows, key=self.middle) for key, rows in schemes.items()]
        ranks = shared_ranks(self._usable(best))
        ranked = self.ordered(
            self.entry(row, ranks.get(row.label), **_among(row, usable[row.scheme_key])) for row in best
        )
        number = {entry.scheme: number for number, entry in enumerate(ranked)}
        chosen = {row.label for row in best}
        others = [row for row in self.rows if row.label not in chosen]
        rest = [
            self.entry(row, None, best_size=False, sizes=len(_shapes(usable[row.scheme_key])))
            for row in sorted(others, key=size_of)
        ]
        return ranked + sorted(rest, key=lambda entry: number[entry.scheme])

    def _usable(self, rows: Iterable[Row]) -> dict[str, tuple[float, float]]:
        """The intervals of those of ``rows`` that can be ranked, by label."""
        return {row.label: self.spans[row.label] for row in rows if not self.reasons[row.label]}

    def middle(self, row: Row) -> tuple[float, str]:
        return sum(self.spans.get(row.label, (float("inf"),))), row.label

    def ordered(self, entries: Iterable[Entry]) -> list[Entry]:
        """``entries`` by rank, figure and label, those without a rank last."""

        def order(entry: Entry) -> tuple[Any, ...]:
            return (1,) if entry.rank is None else (0, entry.rank, *self.middle(entry.row))

        return sorted(entries, key=order)

    def entry(self, row: Row, rank: int | None, **sizes: Any) -> Entry:
        reason = self.reasons[row.label]
        notes = [reason or row.audit_failures, *row.remarks]
        return Entry(
            row=row,
            scheme=self.names[row.scheme_key],
            comparison=self.comparison,
            rank=rank,
            note="; ".join(filter(None, notes)),
            unranked=reason,
            **sizes,
        )


def size_of(row: Row) -> tuple[float, str]:
    """Active parameters of ``row`` and its label, to sort sizes; first those without a measurement."""
    active = row.value("active_parameters")
    return active.center if active else 0.0, row.label


def _among(best: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """The place of ``best`` among the ``rows`` of its scheme that can be ranked."""
    models = _shapes(rows)
    index = models.index(canonical_json(best.model)) if models else 0
    inner = len(models) < 2 or 0 < index < len(models) - 1
    return {"sizes": len(models), "edge": "" if inner else "largest" if index else "smallest"}


def _shapes(rows: Sequence[Row]) -> list[str]:
    """The shapes of ``rows``, smallest first."""
    return list(dict.fromkeys(canonical_json(row.model) for row in sorted(rows, key=size_of)))
