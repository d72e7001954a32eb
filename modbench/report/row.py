"""One row of the table: the runs of one cell, aggregated over seeds."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from scipy.special import stdtrit

from modbench.report.metrics import METRICS, metric
from modbench.report.record import AuditRecord, CellRecord, canonical_json, cell_key
from modbench.report.routing import layout
from modbench.report.store import latest

#: Probes that every run must pass to be ranked: causal, batch-invariant, decode parity, FLOPs.
RANKING_PROBES = (1, 2, 3, 9)
FAR = 1.5


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Mean over seeds and its 95 % t-interval; ``low`` and ``high`` are None for one seed."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Smallest and largest value over seeds, which should be equal."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Over seeds: median of medians, widest IQR, total n; stable if all are, loaded if one is. ``iqr``
    and ``stable`` may be None if a seed has one value, ``loaded`` if no seed says it."""

    median: float
    iqr: float | None
    n: int
    stable: bool | None
    loaded: bool | None = None

    @property
    def marks(self) -> str:
        """Reasons to doubt it; empty if there are none."""
        return time_marks(self.stable, self.loaded)


def time_marks(stable: bool | None, loaded: bool | None, throttled: bool | None = None) -> str:
    """Those of ``unstable``, ``loaded`` and ``throttled`` that hold."""
    marks = {"unstable": stable is False, "loaded": loaded, "throttled": throttled}
    return ", ".join(mark for mark, holds in marks.items() if holds)


@dataclass(frozen=True)
class Row:
    """The records of cells that differ in the seed only, one per seed, ordered by seed."""

    records: tuple[CellRecord, ...]
    label: str  #: name in tables and plots, unique in the suite
    audits: Mapping[str, AuditRecord] = field(default_factory=dict, repr=False)  #: of the suite, by key

    @cached_property
    def cell(self) -> dict[str, Any]:
        """The resolved cell without its seed."""
        return _unseeded(self.records[0])

    @cached_property
    def cell_hash(self) -> str:
        """Unique identifier of the row: hash of its cell and its corpus."""
        return _row_hash(self.records[0])

    @cached_property
    def ok(self) -> tuple[CellRecord, ...]:
        return tuple(record for record in self.records if record.status == "ok")

    @cached_property
    def routings(self) -> list[dict[str, Any]]:
        """Routing of the finished seeds that route, in the same layers and bins."""
        found = [record.routing for record in self.ok if record.routing]
        return [routing for routing in found if layout(routing) == layout(found[0])]

    def conditions(self, rank_by: str) -> dict[str, Any]:
        """Conditions that must be equal for two rows to be ranked against each other: budget, model,
        data, sequence length, amount of held-out text; if ``rank_by`` is a downstream task, its limit
        on items too, since another limit is another test."""
        held = {
            "budget": self.cell["train"]["budget"],
            "model": self.cell["model"],
            "data": self.cell["data"],
            "corpus": self.records[0].data,
            "sequence": self.cell["train"].get("sequence"),
            "heldout_tokens": self.cell["measure"].get("heldout_tokens"),
        }
        if rank_by in self.cell["measure"].get("downstream", ()):
            held["downstream_limit"] = self.cell["measure"].get("downstream_limit")
        return held

    @property
    def status(self) -> str:
        """``ok``, or the number of seeds by status: ``ok 2, diverged 1``."""
        counts = Counter(record.status for record in self.records)
        if len(counts) == 1:
            return self.records[0].status
        return ", ".join(f"{status} {counts[status]}" for status in sorted(counts, reverse=True))

    @property
    def errors(self) -> str:
        """Errors by seed; empty if there are none."""
        return "; ".join(
            f"seed {record.cell['seed']} {record.status}: {record.error}"
            for record in self.records
            if record.status != "ok"
        )

    @cached_property
    def flops_source(self) -> str | None:
        """How the FLOPs were found, ``closed form`` or ``counted``; None in old records."""
        sources = {record.flops_source for record in self.records if record.flops_source}
        return ", ".join(sorted(sources)) or None

    @cached_property
    def _probes_by_run(self) -> list[list[dict[str, Any]]]:
        """Of each run, the audit probes of its scheme, and those that it ran on the trained model."""
        audits = [self.audits.get(record.audit_key or "") for record in self.records]
        pairs = zip(audits, self.records, strict=True)
        return [[*(audit.audit if audit else ()), *record.audit] for audit, record in pairs]

    @cached_property
    def _is_audited(self) -> bool:
        """Return True unless the audit of a record's scheme is missing."""
        return all(record.audit_key in (None, *self.audits) for record in self.records)

    @cached_property
    def _failures(self) -> list[tuple[bool, int, str, str]]:
        """Failed probes, each once: True unless it prevents ranking, number, name, figure."""
        failed = [p for probes in self._probes_by_run for p in probes if p["verdict"] == "failed"]
        prevents = [p["ranks"] or p["probe"] in RANKING_PROBES for p in failed]
        found = zip(failed, prevents, strict=True)
        return sorted({(not one, p["probe"], p["name"], p["figure"]) for p, one in found})

    @property
    def audit_failures(self) -> str:
        """Failed probes with their figures, those that prevent ranking first; empty without any."""
        failed = (f"{number} {name} ({figure})" for _, number, name, figure in self._failures)
        return f"failed audit probe {', '.join(failed)}" if self._failures else ""

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
        probes.sort(key=lambda probe: order.index(probe["verdict"]))
        counts = Counter({probe["probe"]: probe["verdict"] for probe in probes}.values())
        rest = (f", {name} {counts[name]}" for name in ("unchecked", "not asked") if counts[name])
        return f"passed {counts['passed']}{''.join(rest)}"

    @property
    def why_unranked(self) -> str | None:
        """Why the row cannot be ranked, whatever its figures; None if it can."""
        if self.errors:
            return self.errors
        if self._failures and not self._failures[0][0]:
            return self.audit_failures
        if not self._is_audited:
            return "audit was not run"
        for probes in self._probes_by_run:
            run = {probe["probe"] for probe in probes if probe["verdict"] in ("passed", "failed")}
            missing = [str(number) for number in RANKING_PROBES if number not in run]
            if missing:
                return f"audit probe {', '.join(missing)} was not run"
        return None

    def is_whole(self, name: str) -> bool:
        """Return True if all finished seeds measured the metric ``name``, or none did."""
        return len({name in record.metrics for record in self.ok}) < 2

    @cached_property
    def far_from_nominal(self) -> str:
        """Describe a causal rule that selects more than `FAR` times the nominal capacity, or less than
        1 / `FAR` of it, mean over seeds: its nominal FLOPs are not those of the model that is scored."""
        found = []
        for prefix, unit in (("", "of tokens"), ("expert_", "experts per token")):
            realised = self.value(f"{prefix}realised_capacity")
            nominal = self.value(f"{prefix}nominal_capacity")
            if not isinstance(realised, Quality) or not isinstance(nominal, Exact):
                continue
            if not nominal.low / FAR <= realised.mean <= nominal.low * FAR:
                selects = f"causal rule selects {realised.mean:.3g} {unit}"
                found.append(f"{selects}, nominal {nominal.low:.3g}")
        return "; ".join(found)

    @cached_property
    def is_above_unigram(self) -> bool:
        """Return True if a finished run ends with a held-out loss above its unigram loss."""
        return any(
            {"heldout_loss", "unigram_loss"} <= record.metrics.keys()
            and record.metrics["heldout_loss"] > record.metrics["unigram_loss"]
            for record in self.ok
        )

    def value(self, name: str) -> Quality | Exact | Timed | None:
        """The metric ``name`` over the seeds that measured it (quality: finished runs only); None if no
        seed did."""
        kind = metric(name).kind
        records = self.ok if kind == "quality" else self.ok or self.records
        values = [record.metrics[name] for record in records if name in record.metrics]
        if not values:
            return None
        if kind == "timed":
            iqrs, stable = [v["iqr"] for v in values], {v["stable"] for v in values}
            loaded = [value["loaded"] for value in values if "loaded" in value]
            return Timed(
                median=statistics.median(value["median"] for value in values),
                iqr=None if None in iqrs else max(iqrs),
                n=sum(value["n"] for value in values),
                stable=False if False in stable else None if None in stable else True,
                loaded=any(loaded) if loaded else None,
            )
        return Exact(low=min(values), high=max(values)) if kind == "exact" else interval(values)


def interval(values: Sequence[float]) -> Quality:
    """Mean and 95 % t-interval of independent ``values``, one per seed."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Quality(mean=mean, low=None, high=None)
    half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(values) / math.sqrt(count)
    return Quality(mean=mean, low=mean - half, high=mean + half)


def rows_of(records: Iterable[CellRecord], audits: Mapping[str, AuditRecord] | None = None) -> list[Row]:
    """Group records into rows ordered by label; a rerun replaces the earlier record. ``audits``: those
    that the records refer to, by key.

    Rows that share a label get their budget appended if all budgets differ, else the start of the
    cell's hash.
    """
    by_cell: dict[str, list[CellRecord]] = defaultdict(list)
    for record in latest(records):
        by_cell[_row_hash(record)].append(record)
    by_label: dict[str, dict[str, str]] = defaultdict(dict)
    for cell_hash, (record, *_) in by_cell.items():
        budget = f"{record.cell['train']['budget']:.6g} FLOP"
        by_label[record.cell["router"]["label"]][cell_hash] = budget
    rows = []
    for label, budgets in by_label.items():
        for cell_hash, budget in budgets.items():
            suffix = budget if len(set(budgets.values())) == len(budgets) else cell_hash[:6]
            group = sorted(by_cell[cell_hash], key=lambda record: record.cell["seed"])
            name = f"{label} [{suffix}]" if len(budgets) > 1 else label
            rows.append(Row(tuple(group), name, audits or {}))
    return sorted(rows, key=lambda row: (row.label, row.cell_hash))


def _unseeded(record: CellRecord) -> dict[str, Any]:
    return {name: part for name, part in record.cell.items() if name != "seed"}


def _row_hash(record: CellRecord) -> str:
    # The cell names a text file by its path; the record has the hash of its contents.
    return cell_key({"cell": _unseeded(record), "corpus": record.data})


#: Parts of the environment that must be equal for wall times or memory to be compared.
MACHINE = (
    *("cpu", "gpu", "cores", "threads", "driver", "cuda", "torch", "dtype", "deterministic"),
    "world_size",
)


def machine_differences(rows: Iterable[Row]) -> list[str]:
    """One text per property in which the machines of the rows' timed metrics differ, or the threads of
    one metric; empty if all timings may be compared."""
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for label, record in [(row.label, record) for row in rows for record in row.records]:
        for name in (name for name in record.metrics if METRICS[name].kind == "timed"):
            threads = record.metrics[name].get("threads", record.environment["threads"])
            machine = record.environment | {"threads": threads}
            for part in MACHINE:
                found[part, name][canonical_json(machine.get(part))].add(label)
    texts = {}
    for (part, _), labels in found.items():
        if len(labels) > 1:
            values = (f"{value} ({', '.join(sorted(labels[value]))})" for value in sorted(labels))
            texts[f"{part}: {' and '.join(values)}"] = part
    return sorted(texts, key=lambda text: MACHINE.index(texts[text]))
