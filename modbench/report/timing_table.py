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
from modbench.report.timing import refuse_other_environments, refuse_other_versions

#: Shortest sample that pyperf accepts, in seconds.
SHORTEST = 1e-3
#: Smallest number of samples with a meaningful spread.
FEWEST = 3
MEMORY = {"training_memory": "training", "inference_memory": "inference"}


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case of one scheme, over all processes that measured it. Figures may be None. ``status`` is
    ``ok``, ``invalid`` (throttled in all processes, so nothing is derived from its time; or fewer
    samples than `FEWEST`, so it has no time), ``oom`` or ``failed``."""

    label: str
    router: str
    case: str
    phase: str
    sequences: int | None = None
    tokens: int | None = None
    past: int | None = None
    status: str = "ok"
    seconds_median: float | None = None  #: per run: all new tokens of all sequences
    seconds_iqr: float | None = None
    n: int = 0
    processes: int = 0
    stable: bool | None = None
    loaded: bool | None = None  #: the machine's load exceeded its cores in any process
    marks: str = ""  #: reasons to doubt its time
    remarks: str = ""
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
        if self.status == "invalid" or not self.flops_realised or not dense.flops_realised:
            return self
        achieved = dense.seconds_median / self.seconds_median
        promised = dense.flops_realised / self.flops_realised
        return replace(
            self,
            speed_up=achieved,
            promised_speed_up=promised,
            realised_efficiency=achieved / promised,
            efficiency_marks=time_marks(self.stable and dense.stable, self.loaded or dense.loaded),
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
    def failed_ceilings(self) -> list[TimingRecord]:
        return [t for t in self.timings if t.measurement == "ceiling" and t.status != "ok"]

    @cached_property
    def usable_ceilings(self) -> list[TimingRecord]:
        """Those that were measured without throttling."""
        measured = [t for t in self.timings if t.measurement == "ceiling" and t.status == "ok"]
        return [timing for timing in measured if not _throttled(timing.measured["gpu"])]

    @cached_property
    def ceilings(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The fastest matmul of each dtype and component."""
        gemms = [gemm for timing in self.usable_ceilings for gemm in timing.measured["gemm"]]
        gemms.sort(key=lambda gemm: (gemm["dtype"], gemm["component"], gemm["flops_per_second"]))
        return {(gemm["dtype"], gemm["component"]): gemm for gemm in gemms}

    @property
    def copy_bytes_per_second(self) -> float | None:
        return max((t.measured["copy_bytes_per_second"] for t in self.usable_ceilings), default=None)

    @cached_property
    def cases(self) -> tuple[CaseRow, ...]:
        """Rows by label; cases in the order of timing."""
        rows: list[CaseRow] = []
        for timings in self._by_label.values():
            rows += self._cases_of([t for t in timings if t.measurement == "time"])
        valid = [r for r in rows if r.router == "vanilla" and r.is_timed and r.status == "ok"]
        dense = {row.case: row for row in valid if row.label == valid[0].label}
        return tuple(row.compared_to(dense.get(row.case)) for row in rows)

    def _cases_of(self, timings: Sequence[TimingRecord]) -> list[CaseRow]:
        """The cases of one scheme, from its processes."""
        found: dict[str, list[_Sample]] = defaultdict(list)
        lacking: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for timing in timings:
            for case in timing.measured.get("cases", []):
                found[case["name"]].append((timing, case))
            for case in timing.measured.get("ran_out", []):
                lacking[case["name"]].append(case)
        rows = [
            self._case(samples, len(timings) - len(samples) - len(lacking[name]), len(lacking[name]))
            for name, samples in found.items()
        ]
        for name, cases in lacking.items():
            if cases and name not in found:
                asked = {part: cases[-1][part] for part in cases[-1] if part != "name"}
                rows.append(CaseRow(**_scheme(timings[0]), case=name, status="oom", **asked))
        listed = [t for t in timings if t.status == "oom" and "ran_out" in t.measured]
        ended = [t for t in timings if t.status != "ok" and t not in listed]
        if timings and len(ended) == len(timings):
            last, case = ended[-1], "all others" if rows else "all"
            why: dict[str, Any] = {
                "status": last.status,
                "asked_bytes": last.asked_bytes,
                "error": last.error or "",
            }
            rows.append(CaseRow(**_scheme(last), case=case, phase="", **why))
        return rows

    def _case(self, samples: list[_Sample], failed: int, ran_out: int) -> CaseRow:
        """One case that was measured; other processes ``failed`` or ``ran_out`` of memory."""
        valid = [(timing, case) for timing, case in samples if not _throttled(case["gpu"])]
        used = valid or samples
        timing, case = used[0]
        seconds = [value for _, one in used for value in one["seconds"]]
        short = any(min(one["seconds"]) * one["loops"] < SHORTEST for _, one in used)
        row = CaseRow(
            **_scheme(timing),
            case=case["name"],
            **{name: case[name] for name in ("phase", "sequences", "tokens", "past")},
            status="ok" if valid and len(seconds) >= FEWEST else "invalid",
            n=len(seconds),
            processes=len(used),
            loaded=any(of.measured["machine"]["overloaded"] for of, _ in used),
            remarks="; ".join(_remarks(samples, used, len(seconds), failed, ran_out)),
            flops_nominal=case["flops"]["nominal"]["model"],
            flops_realised=case["flops"]["realised"]["model"],
            flops_executed=case["flops"]["dispatched"]["executed"],
            balance=timing.measured["balance"],
            compiled=timing.measured["compiled"],
            dtype=timing.environment["dtype"],
        )
        if len(seconds) < FEWEST:
            return row
        spread = summary(seconds)
        stable = spread["stable"] and not short
        marks = time_marks(stable, row.loaded)
        row = replace(
            row,
            seconds_median=spread["median"],
            seconds_iqr=spread["iqr"],
            stable=stable,
            marks=marks if valid else ", ".join(filter(None, ("invalid", marks))),
        )
        if not valid:
            return row
        rates = [g["flops_per_second"] for (dtype, _), g in self.ceilings.items() if dtype == row.dtype]
        rate, best = case["flops"]["dispatched"]["executed"] / spread["median"], max(rates, default=None)
        joules = [one["joules"] for _, one in valid if one["joules"] is not None]
        return replace(
            row,
            flops_per_second=rate,
            ceiling=best,
            utilisation=None if best is None else rate / best,
            joules=sum(joules) / len(joules) if joules else None,
        )

    @cached_property
    def memory(self) -> tuple[MemoryRow, ...]:
        timings = (timing for of in self._by_label.values() for timing in of)
        return tuple(row for t in timings if t.measurement in MEMORY for row in _memory_rows(t))


def _throttled(gpu: dict[str, Any] | None) -> list[str]:
    return [] if gpu is None else list(gpu["throttled"])


def _scheme(timing: TimingRecord) -> dict[str, Any]:
    router = timing.cell["router"]
    return {"label": router["label"], "router": router["name"]}


def _remarks(
    samples: list[_Sample], used: list[_Sample], n: int, failed: int, ran_out: int
) -> Iterable[str]:
    """What a reader of one case must know besides its marks."""
    count = len(samples)
    if n < FEWEST:
        yield f"no time, too few samples: {n}"
    slowed = [_throttled(case["gpu"]) for _, case in samples]
    if any(slowed):
        reasons = ", ".join(sorted({reason for some in slowed for reason in some}))
        hit = sum(map(bool, slowed))
        which = "invalid" if hit == count else "left out"
        yield f"throttled in {hit} of {count} processes ({reasons}): {which}"
    if ran_out:
        yield f"memory ran out in {ran_out} of {count + failed + ran_out} processes"
    if failed:
        yield f"{failed} more processes failed"
    if len({timing.measured["compiled"] for timing, _ in used}) > 1:
        yield "compiled in some processes only"
    if len({canonical_json(case["flops"]) for _, case in used}) > 1:
        yield "FLOPs differ between processes"


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
        refuse_other_environments(timings)
        refuse_other_versions(timings)
        groups: dict[str, list[TimingRecord]] = defaultdict(list)
        for timing in timings:
            groups[cell_key({**timing.cell, "router": None})].append(timing)
        ordered = sorted(groups.values(), key=lambda group: canonical_json(group[0].cell["model"]))
        shapes = [{k: v for k, v in group[0].cell.items() if k != "router"} for group in ordered]
        return cls(tuple(map(Group, shapes, map(tuple, ordered))), timings)

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """A distinct title per group; empty for a single one."""
        if len(self.groups) == 1:
            return ("",)
        titles: list[str] = []
        for number, group in enumerate(self.groups, start=1):
            name = group.name or f"Shape {number}"
            titles.append(name if name not in titles else f"{name}, {number}")
        return tuple(titles)

    def csv(self) -> str:
        """All cases at full precision; the columns are those of `CaseRow`."""
        return _csv(CaseRow, [row for group in self.groups for row in group.cases])

    def memory_csv(self) -> str:
        """All parts in bytes; the columns are those of `MemoryRow`."""
        return _csv(MemoryRow, [row for group in self.groups for row in group.memory])


def _csv(kind: type, rows: Sequence[Any]) -> str:
    return csv_table([field.name for field in fields(kind)], map(asdict, rows))
