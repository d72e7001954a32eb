"""One row of the table: runs that differ in their seed only, aggregated."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from scipy.special import stdtrit

from modbench.records.line import key_of
from modbench.records.metrics import METRICS
from modbench.records.probes import RANKING_PROBES
from modbench.records.record import AuditRecord, Finding
from modbench.records.result import Result
from modbench.records.run import Run
from modbench.report.layers import idle_layers
from modbench.report.leaderboard.scheme import scheme_key
from modbench.report.timing.table import TimingTable
from modbench.report.timing.values import HARDWARE, time_marks

FAR = 1.5
#: Parts of the environment that must be equal for wall times or memory to be compared.
MACHINE = (*HARDWARE, "dtype", "deterministic", "world_size")


@dataclass(frozen=True, kw_only=True)
class Value:
    """A metric over seeds.

    exact: ``center`` and ``low`` are the smallest value, ``high`` the largest. quality: the mean and its
    95 % t-interval, None for one seed. timed: median, IQR and number of samples of all processes that
    timed the scheme; memory has one and no IQR.
    """

    center: float
    low: float | None = None
    high: float | None = None
    iqr: float | None = None
    n: int | None = None
    stable: bool | None = None
    loaded: bool | None = None
    throttled: bool | None = None

    @property
    def spread(self) -> float | None:
        """Half the interval, the IQR, or the difference of exact values."""
        return self.iqr if self.high is None else self.high - self.center

    @property
    def marks(self) -> str:
        """Reasons to doubt a time; empty if there are none."""
        return time_marks(self.stable, self.loaded, self.throttled)


@dataclass(frozen=True)
class Row:
    """Runs that differ in the seed only, one per seed, ordered by seed."""

    records: tuple[Result, ...]
    label: str  #: name in tables and plots, unique in the suite
    audits: Mapping[str, AuditRecord] = field(default_factory=dict, repr=False)  #: of the suite, by key
    times: Mapping[str, Value] = field(default_factory=dict, repr=False)  #: timed metrics

    @property
    def first(self) -> Result:
        return self.records[0]

    @property
    def run(self) -> Run:
        """The run of its first seed."""
        return self.first.run

    @property
    def budget(self) -> int:
        return self.first.budget

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the measurements of its first seed."""
        return self.first.settings

    @cached_property
    def ok(self) -> tuple[Result, ...]:
        return tuple(record for record in self.records if record.status == "ok")

    @cached_property
    def scheme_key(self) -> str:
        """Equal in the rows of one scheme, whatever their sizes and budgets."""
        return scheme_key(self.first)

    @property
    def model(self) -> dict[str, Any]:
        """The shape of its model."""
        return self.first.model

    @property
    def budget_spent(self) -> float | None:
        """Training FLOPs by the exact count over the budget, the mean over seeds."""
        spent = [
            record.metrics["train_flops"]
            for record in self.ok or self.records
            if "train_flops" in record.metrics
        ]
        return statistics.fmean(spent) / self.budget if spent else None

    def conditions(self, rank_by: str) -> dict[str, Any]:
        """Conditions that must be equal for two rows to be ranked against each other: budget, data,
        sequence length, amount of held-out text; if ``rank_by`` is a downstream task, its limit on items
        and its few-shot examples too, since others are another test."""
        held = {
            "budget": self.budget,
            "data": self.first.record.run["data"],
            "corpus": self.first.data,
            "sequence": self.run.train.sequence,
            "heldout_tokens": self.settings.get("heldout", {}).get("heldout_tokens"),
        }
        task = self.settings.get("downstream", {}).get(rank_by, {})
        return held | {f"downstream_{name}": task[name] for name in ("limit", "fewshot") if name in task}

    @property
    def status(self) -> str:
        """``ok``, or the number of seeds by status: ``ok 2, diverged 1``."""
        counts = Counter(record.status for record in self.records)
        if len(counts) == 1:
            return self.records[0].status
        return ", ".join(f"{status} {counts[status]}" for status in sorted(counts, reverse=True))

    @cached_property
    def flops_source(self) -> str | None:
        """Source of the FLOPs, ``closed form`` or ``counted``; None in old records."""
        sources = {record.flops_source for record in self.records if record.flops_source}
        return ", ".join(sorted(sources)) or None

    @cached_property
    def _probes_by_run(self) -> list[list[Finding]]:
        """Of each run, the audit probes of its scheme, and those that it ran on the trained model."""
        return [self.findings(record) for record in self.records]

    def findings(self, result: Result) -> list[Finding]:
        """The findings of the audit of the scheme, and those on the trained weights of ``result``."""
        audit = self.audits.get(result.audit_key or "")
        return [*(audit.audit if audit else ()), *result.audit]

    @cached_property
    def _is_audited(self) -> bool:
        """Return True unless the audit of a record's scheme is missing."""
        return all(record.audit_key in (None, *self.audits) for record in self.records)

    @cached_property
    def _failures(self) -> list[tuple[bool, int, str, str]]:
        """Failed probes, each once: True unless it prevents ranking, number, name, figure."""
        failed = [p for probes in self._probes_by_run for p in probes if p.verdict == "failed"]
        prevents = [p.ranks or p.probe in RANKING_PROBES for p in failed]
        return sorted(
            {
                (not prevented, probe.probe, probe.name, probe.figure)
                for probe, prevented in zip(failed, prevents, strict=True)
            }
        )

    @property
    def audit(self) -> str:
        """``passed 7, unchecked 3, not asked 1``, or the probes that failed in any run."""
        probes = [probe for of_run in self._probes_by_run for probe in of_run]
        if not probes or not self._is_audited:
            return "not run"
        if self._failures:
            failed = sorted({(number, name) for _, number, name, _ in self._failures})
            return "failed " + ", ".join(f"{number} {name}" for number, name in failed)
        order = ("not asked", "passed", "unchecked")
        probes.sort(key=lambda probe: order.index(probe.verdict))
        counts = Counter({probe.probe: probe.verdict for probe in probes}.values())
        rest = (f", {name} {counts[name]}" for name in ("unchecked", "not asked") if counts[name])
        return f"passed {counts['passed']}{''.join(rest)}"

    @property
    def why_unranked(self) -> str | None:
        """Why the row cannot be ranked, whatever its figures; None if it can."""
        lost = [record for record in self.records if record.status != "ok"]
        if lost:
            return "; ".join(f"seed {run.seed} {run.status}: {run.error}" for run in lost)
        if self._failures and not self._failures[0][0]:
            return self.audit_failures
        if not self._is_audited:
            return "audit was not run"
        for probes in self._probes_by_run:
            run = {probe.probe for probe in probes if probe.verdict in ("passed", "failed")}
            missing = [str(number) for number in RANKING_PROBES if number not in run]
            if missing:
                return f"not run of the audit: probe {', '.join(missing)}; add audit to [measure] steps"
        return None

    @property
    def audit_failures(self) -> str:
        """Failed probes with their figures, those that prevent ranking first; empty without any."""
        failed = (f"{number} {name} ({figure})" for _, number, name, figure in self._failures)
        return f"failed audit probe {', '.join(failed)}" if self._failures else ""

    @property
    def remarks(self) -> list[str]:
        """Reasons to read the figures of finished runs with care."""
        remarks = []
        if any(
            {"heldout_loss", "unigram_loss"} <= record.metrics.keys()
            and record.metrics["heldout_loss"] > record.metrics["unigram_loss"]
            for record in self.ok
        ):
            remarks.append("held-out loss is above the unigram loss")
        remarks += dict.fromkeys(f"not scored: {lost}" for record in self.ok for lost in record.lost)
        for prefix, unit in (("", "of tokens"), ("expert_", "experts per token")):
            realised = self.value(f"{prefix}realised_capacity")
            nominal = self.value(f"{prefix}nominal_capacity")
            if not realised or not nominal:
                continue
            if not nominal.center / FAR <= realised.center <= nominal.center * FAR:
                selects = f"causal rule selects {realised.center:.3g} {unit}"
                remarks.append(f"{selects}, nominal {nominal.center:.3g}")
        return remarks + idle_layers(self.ok)

    def by_seed(self, name: str) -> dict[int, float]:
        """The metric ``name`` of each finished seed that measured it."""
        return {record.seed: record.metrics[name] for record in self.ok if name in record.metrics}

    def value(self, name: str) -> Value | None:
        """The metric ``name`` over the seeds that measured it (quality: finished runs only); None if no
        seed did."""
        kind = METRICS[name].kind
        if kind == "timed":
            return self.times.get(name)
        records = self.ok if kind == "quality" else self.ok or self.records
        values = [record.metrics[name] for record in records if name in record.metrics]
        if not values:
            return None
        if kind == "exact":
            return Value(center=min(values), low=min(values), high=max(values))
        return interval(values)


def interval(values: Sequence[float]) -> Value:
    """Mean and 95 % t-interval of independent ``values``, one per seed."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Value(center=mean)
    half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(values) / math.sqrt(count)
    return Value(center=mean, low=mean - half, high=mean + half)


def rows_of(
    results: Iterable[Result],
    audits: Mapping[str, AuditRecord] | None = None,
    times: Callable[[Result], Mapping[str, Value]] = lambda result: {},
) -> list[Row]:
    """Group ``results`` into rows ordered by label. ``audits``: those that they refer to, by key;
    ``times``: the timed metrics of a result's scheme.

    Rows that share a label get their budget appended if all budgets differ, else the start of the
    hash of run and corpus.
    """
    by_label: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        stated = result.record.run | {"seed": None}
        # The run names a text file by its path; the record has the hash of its contents.
        key = key_of({"run": stated, "budget": result.budget, "corpus": result.data})
        by_label[result.label][key].append(result)
    rows = []
    for label, groups in by_label.items():
        budgets = [f"{group[0].budget:.6g} FLOP" for group in groups.values()]
        by_budget = len(set(budgets)) == len(budgets)
        for (key, group), budget in zip(groups.items(), budgets, strict=True):
            name = f"{label} [{budget if by_budget else key[:6]}]" if len(groups) > 1 else label
            seeds = sorted(group, key=lambda result: result.seed)
            rows.append(Row(tuple(seeds), name, audits or {}, times(seeds[0])))
    return sorted(rows, key=lambda row: row.label)


#: The metric of each timed case.
_METRICS = {"forward": "forward_seconds", "train": "train_step_seconds"}


def timed_values(table: TimingTable | None) -> Callable[[Result], Mapping[str, Value]]:
    """The timed metrics of a result: those of its scheme at its shape and batch, in ``table``."""
    by_key: dict[str, dict[str, Value]] = {}
    for row in table.cases if table else ():
        if row.case in _METRICS and row.seconds_median is not None:
            by_key.setdefault(row.key, {})[_METRICS[row.case]] = Value(
                center=row.seconds_median,
                iqr=row.seconds_iqr,
                n=row.n,
                stable=row.stable,
                loaded=row.loaded,
                throttled=row.throttled,
            )
    for memory in table.memory if table else ():
        if memory["phase"] == "training" and memory["peak"] is not None:
            peak = Value(center=memory["peak"], n=1)
            by_key.setdefault(memory["key"], {})["peak_memory_bytes"] = peak
    return lambda result: by_key.get(result.run.timed.key, {})
