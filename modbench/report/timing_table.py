"""Timings of one run as rows: the cases of each scheme, its memory by part, the machine's ceilings.

Realised efficiency is the measured speed-up divided by the speed-up in FLOPs: (time dense / time routed)
/ (FLOPs dense / FLOPs routed), with realised FLOPs in convention ``model``; dense is the vanilla row of
the same shape. Utilisation is FLOP/s, convention ``executed`` with padded slots, divided by the fastest
plain matmul at the model's shapes in the same dtype and run.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from modbench.analysis.intervals import summary
from modbench.report.record import TimingRecord, canonical_json, cell_key
from modbench.report.row import time_marks
from modbench.report.table import csv_table
from modbench.report.timing import refuse_incomparable

#: Shortest sample that pyperf accepts, in seconds.
SHORTEST = 1e-3
#: Smallest number of samples with a meaningful spread.
FEWEST = 3
MEMORY = {"training_memory": "training", "inference_memory": "inference"}


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case of one scheme, over all processes that measured it; or, if all its processes ended with
    an error, what was not measured and why. Figures may be None. ``status`` is ``ok``, ``invalid``
    (fewer samples than `FEWEST`, so no time), ``oom`` or ``failed``."""

    label: str
    router: str
    case: str
    phase: str = ""
    sequences: int | None = None
    tokens: int | None = None
    past: int | None = None
    status: str = "ok"
    seconds_median: float | None = None  #: per run: all new tokens of all sequences
    seconds_iqr: float | None = None
    n: int = 0
    processes: int = 0  #: that measured it
    failed: int = 0  #: processes that did not
    stable: bool | None = None
    loaded: bool | None = None  #: the machine's load exceeded its cores in any process
    throttled: bool | None = None  #: in all processes; else those that were throttled are left out
    marks: str = ""  #: reasons to doubt its time
    flops_nominal: int | None = None  #: convention model
    flops_realised: int | None = None
    flops_executed: int | None = None  #: convention executed, with padded slots
    flops_per_second: float | None = None
    ceiling: float | None = None
    utilisation: float | None = None
    speed_up: float | None = None
    promised_speed_up: float | None = None
    realised_efficiency: float | None = None
    efficiency_marks: str = ""  #: reasons to doubt its time or the dense time
    joules: float | None = None
    balance: str = ""
    compiled: bool | None = None
    dtype: str = ""
    asked_bytes: int | None = None
    error: str = ""

    @property
    def is_timed(self) -> bool:
        return self.seconds_median is not None

    def compared_to(self, dense: "CaseRow | None") -> "CaseRow":
        """The row with its speed-ups over the same case of the ``dense`` row."""
        if dense is None or self.seconds_median is None or dense.seconds_median is None:
            return self
        if not self.flops_realised or not dense.flops_realised:
            return self
        achieved = dense.seconds_median / self.seconds_median
        promised = dense.flops_realised / self.flops_realised
        return replace(
            self,
            speed_up=achieved,
            promised_speed_up=promised,
            realised_efficiency=achieved / promised,
            efficiency_marks=time_marks(
                self.stable and dense.stable,
                self.loaded or dense.loaded,
                self.throttled or dense.throttled,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """One part of a scheme's memory, in bytes; ``difference`` is measured / predicted - 1."""

    label: str
    router: str
    phase: str
    part: str
    status: str
    predicted: int | None = None
    measured: int | None = None
    difference: float | None = None
    asked_bytes: int | None = None
    error: str = ""


#: A process and one of its cases.
_Sample = tuple[TimingRecord, dict[str, Any]]


@dataclass(frozen=True)
class Group:
    """Schemes of one size, compared to each other."""

    shape: dict[str, Any]  #: model, train, time
    timings: tuple[TimingRecord, ...]

    @cached_property
    def name(self) -> str:
        """The common suffix of all labels after a slash (suites of several sizes); else empty."""
        ends = {label.rpartition("/")[2] if "/" in label else "" for label in self._by_label}
        return ends.pop() if len(ends) == 1 else ""

    @cached_property
    def _by_label(self) -> dict[str, list[TimingRecord]]:
        found = defaultdict(list)
        for timing in self.timings:
            if timing.cell["router"] is not None:
                found[timing.cell["router"]["label"]].append(timing)
        return dict(sorted(found.items()))

    @cached_property
    def measured_ceilings(self) -> list[dict[str, Any]]:
        """Results of the processes that measured ceilings."""
        return [t.measured for t in self.timings if t.measurement == "ceiling" and t.status == "ok"]

    @cached_property
    def ceilings(self) -> dict[str, dict[str, Any]]:
        """The fastest matmul of each dtype."""
        gemms = [gemm for measured in self.measured_ceilings for gemm in measured["gemm"]]
        gemms.sort(key=lambda gemm: (gemm["dtype"], gemm["flops_per_second"]))
        return {gemm["dtype"]: gemm for gemm in gemms}

    @property
    def copy_bytes_per_second(self) -> float | None:
        return max((m["copy_bytes_per_second"] for m in self.measured_ceilings), default=None)

    @cached_property
    def cases(self) -> tuple[CaseRow, ...]:
        """Rows by label; cases in the order of timing."""
        rows: list[CaseRow] = []
        for timings in self._by_label.values():
            rows += self._cases_of([t for t in timings if t.measurement == "time"])
        valid = [row for row in rows if row.router == "vanilla" and row.is_timed]
        dense = {row.case: row for row in valid if row.label == valid[0].label}
        return tuple(row.compared_to(dense.get(row.case)) for row in rows)

    def _cases_of(self, timings: Sequence[TimingRecord]) -> list[CaseRow]:
        """The cases of one scheme, from its processes."""
        found: dict[str, list[_Sample]] = defaultdict(list)
        for timing in timings:
            for case in timing.measured.get("cases", []):
                found[case["name"]].append((timing, case))
        rows = [self._case(samples, len(timings) - len(samples)) for samples in found.values()]
        if timings and all(timing.status != "ok" for timing in timings):
            last, case = timings[-1], "all others" if rows else "all"
            why: dict[str, Any] = {
                "status": last.status,
                "asked_bytes": last.asked_bytes,
                "error": last.error or "",
            }
            rows.append(CaseRow(**_scheme(last), case=case, failed=len(timings), **why))
        return rows

    def _case(self, samples: list[_Sample], failed: int) -> CaseRow:
        """One case that was measured; other processes ``failed`` or ran out of memory."""
        cool = [(timing, case) for timing, case in samples if not _throttled(case["gpu"])]
        used = cool or samples
        timing, case = used[0]
        seconds = [value for _, one in used for value in one["seconds"]]
        row = CaseRow(
            **_scheme(timing),
            case=case["name"],
            **{name: case[name] for name in ("phase", "sequences", "tokens", "past")},
            n=len(seconds),
            processes=len(used),
            failed=failed,
            loaded=any(of.measured["machine"]["overloaded"] for of, _ in used),
            throttled=not cool,
            flops_nominal=case["flops"]["nominal"]["model"],
            flops_realised=case["flops"]["realised"]["model"],
            flops_executed=case["flops"]["dispatched"]["executed"],
            balance=timing.measured["balance"],
            compiled=timing.measured["compiled"],
            dtype=timing.environment["dtype"],
        )
        if len(seconds) < FEWEST:
            return replace(row, status="invalid", error=f"no time, too few samples: {len(seconds)}")
        spread = summary(seconds)
        short = any(min(one["seconds"]) * one["loops"] < SHORTEST for _, one in used)
        stable = spread["stable"] and not short
        rate = case["flops"]["dispatched"]["executed"] / spread["median"]
        best = self.ceilings.get(row.dtype, {}).get("flops_per_second")
        joules = [one["joules"] for _, one in used if one["joules"] is not None]
        return replace(
            row,
            seconds_median=spread["median"],
            seconds_iqr=spread["iqr"],
            stable=stable,
            marks=time_marks(stable, row.loaded, row.throttled),
            flops_per_second=rate,
            ceiling=best,
            utilisation=None if best is None else rate / best,
            joules=sum(joules) / len(joules) if joules else None,
        )

    @cached_property
    def memory(self) -> tuple[MemoryRow, ...]:
        timings = (timing for of in self._by_label.values() for timing in of)
        return tuple(row for t in timings if t.measurement in MEMORY for row in _memory_rows(t))


def _throttled(gpu: dict[str, Any] | None) -> bool:
    return gpu is not None and bool(gpu["throttled"])


def _scheme(timing: TimingRecord) -> dict[str, Any]:
    router = timing.cell["router"]
    return {"label": router["label"], "router": router["name"]}


def _memory_rows(timing: TimingRecord) -> list[MemoryRow]:
    known = {**_scheme(timing), "status": timing.status, "phase": MEMORY[timing.measurement]}
    if timing.status != "ok":
        asked, error = timing.asked_bytes, timing.error or ""
        return [MemoryRow(**known, part="peak", asked_bytes=asked, error=error)]
    measured, predicted = timing.measured["measured"], timing.measured["predicted"]
    return [
        MemoryRow(
            **known,
            part=part,
            predicted=predicted[part],
            measured=measured[part],
            difference=measured[part] / predicted[part] - 1 if predicted[part] else None,
        )
        for part in predicted
    ]


@dataclass(frozen=True)
class TimingTable:
    """All timings of one run."""

    groups: tuple[Group, ...]
    timings: tuple[TimingRecord, ...]

    @classmethod
    def of(cls, timings: Iterable[TimingRecord]) -> "TimingTable":
        """
        Raises:
            UserError: machines or settings differ, or two schemes share a label.
        """
        timings = tuple(timings)
        refuse_incomparable(timings)
        groups: dict[str, list[TimingRecord]] = defaultdict(list)
        for timing in timings:
            groups[cell_key({**timing.cell, "router": None})].append(timing)
        ordered = sorted(groups.values(), key=lambda group: canonical_json(group[0].cell["model"]))
        shapes = [{k: v for k, v in group[0].cell.items() if k != "router"} for group in ordered]
        return cls(tuple(map(Group, shapes, map(tuple, ordered))), timings)

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """A title per group; empty for a single one."""
        if len(self.groups) == 1:
            return ("",)
        return tuple(group.name or f"Shape {n}" for n, group in enumerate(self.groups, start=1))

    def csv(self) -> str:
        """All cases at full precision; the columns are those of `CaseRow`."""
        return _csv(CaseRow, [row for group in self.groups for row in group.cases])

    def memory_csv(self) -> str:
        """All parts in bytes; the columns are those of `MemoryRow`."""
        return _csv(MemoryRow, [row for group in self.groups for row in group.memory])


def _csv(kind: type, rows: Sequence[Any]) -> str:
    return csv_table([field.name for field in fields(kind)], map(asdict, rows))
