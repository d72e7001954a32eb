"""The table: ranked rows, and its CSV."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from modbench.records.metrics import METRICS, Metric, ranking_metric
from modbench.records.record import AuditRecord, canonical_json
from modbench.records.result import Result
from modbench.report.downstream.scores import csv_columns, metrics_of, tasks_of
from modbench.report.layers import csv_columns as layer_columns
from modbench.report.layers import values as layer_values
from modbench.report.leaderboard.differences import TO_BEST, TO_DENSE, Differences, differences_of
from modbench.report.leaderboard.entry import Entry
from modbench.report.leaderboard.row import Row, Value, rows_of, timed_values
from modbench.report.leaderboard.scheme import scheme_names, shape_columns, split_label
from modbench.report.table import Table
from modbench.report.timing.table import TimingTable
from modbench.report.timing.values import processor_types


@dataclass(frozen=True)
class Leaderboard:
    """All rows, comparison by comparison, ranked ones first.

    A comparison holds rows of equal budget and data (all of `Row.conditions`); rows are ordered within
    it by the figure that ranks them, and `differences` says which of them may be the best. If there are
    several shapes, each scheme is ranked at the size of its best mean. Rows of isoFLOP suites have no
    position here: their optima have.
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

    @cached_property
    def differences(self) -> Differences:
        """The differences between ranked rows in the metric that ranks the table."""
        return differences_of(self.comparisons, METRICS[self.rank_by])

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
            "position": entry.position,
            "group": self.differences.group(entry) or None,
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
            **(self._minus(entry) if self.differences.pairs else {}),
            "processor": "; ".join(processor_types(row.records)),
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

    def _minus(self, entry: Entry) -> dict[str, Any]:
        """The columns on the differences of ``entry`` to the dense row and to the best one."""
        dense, best = (self.differences.to(entry, family) for family in (TO_DENSE, TO_BEST))
        minus = dense and dense.difference
        low, high = (minus and minus.interval) or (None, None)
        return {
            "minus_dense": minus and minus.value,
            "minus_dense_low": low,
            "minus_dense_high": high,
            "minus_dense_p": minus and minus.p,
            "minus_dense_p_adjusted": minus and minus.p_adjusted,
            "minus_dense_verdict": minus and minus.verdict,
            "same_processor_as_dense": dense and dense.same_processor,
            "to_best_p_adjusted": best and best.difference.p_adjusted,
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
    def figures(self) -> dict[str, float]:
        """The figure of each row that was measured, by label, negated if higher is better: the mean over
        seeds, of an exact metric the middle of its range."""
        sign = 1 if self.criterion.direction == "lower" else -1
        figures = {}
        for row in self.rows:
            if value := row.value(self.criterion.name):
                is_range = self.criterion.kind == "exact" and value.high is not None
                middle = (value.center + (value.high or 0.0)) / 2 if is_range else value.center
                figures[row.label] = sign * middle
        return figures

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why each row cannot be ranked, by label; empty if it can."""
        return {row.label: self.why_unranked(row) for row in self.rows}

    def why_unranked(self, row: Row) -> str:
        """Why ``row`` cannot be ranked, whatever the other rows are."""
        name = self.criterion.name
        if row.why_unranked:
            return row.why_unranked
        if row.label not in self.figures:
            return f"{name} was not measured"
        if not all(name in record.metrics for record in row.ok):
            return f"{name} was not measured in all seeds"
        return ""

    @property
    def is_isoflop(self) -> bool:
        return any(record.isoflop for row in self.rows for record in row.records)

    def entries(self) -> list[Entry]:
        """Ranked entries by figure and label, then those that may not be ranked; at last the sizes
        that aren't the best of their scheme."""
        if self.is_isoflop:
            return [self.entry(row) for row in self.rows]
        if len({canonical_json(row.model) for row in self.rows}) == 1:
            return self.ordered(self.entry(row) for row in self.rows)
        schemes: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            schemes[row.scheme_key].append(row)
        usable = {key: [r for r in rows if not self.reasons[r.label]] for key, rows in schemes.items()}
        best = [min(usable[key] or rows, key=self.order) for key, rows in schemes.items()]
        ranked = self.ordered(self.entry(row, **_among(row, usable[row.scheme_key])) for row in best)
        number = {entry.scheme: number for number, entry in enumerate(ranked)}
        chosen = {row.label for row in best}
        others = [row for row in self.rows if row.label not in chosen]
        rest = [
            self.entry(row, best_size=False, sizes=len(_shapes(usable[row.scheme_key])))
            for row in sorted(others, key=size_of)
        ]
        return ranked + sorted(rest, key=lambda entry: number[entry.scheme])

    def order(self, row: Row) -> tuple[float, str]:
        return self.figures.get(row.label, float("inf")), row.label

    def ordered(self, entries: Iterable[Entry]) -> list[Entry]:
        """``entries`` by figure and label, with their positions; those that can't be ranked last."""
        entries = sorted(entries, key=lambda entry: (bool(entry.unranked), self.order(entry.row)))
        return [
            entry if entry.unranked else replace(entry, position=number)
            for number, entry in enumerate(entries, start=1)
        ]

    def entry(self, row: Row, **sizes: Any) -> Entry:
        reason = self.reasons[row.label]
        notes = [reason or row.audit_failures, *row.remarks]
        return Entry(
            row=row,
            scheme=self.names[row.scheme_key],
            comparison=self.comparison,
            position=None,
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
