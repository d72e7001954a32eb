"""Rows of timings: the cases of each scheme, and its memory by part.

Realised efficiency is the measured speed-up divided by the speed-up in FLOPs: (time dense / time routed)
/ (FLOPs dense / FLOPs routed), with realised FLOPs in convention ``model``; dense is the vanilla row of
the same shape. Utilisation is FLOP/s, convention ``executed`` with padded slots, divided by the fastest
plain matmul at the model's shapes in the same dtype and run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modbench.analysis.intervals import summary
from modbench.report.record import TimingRecord

#: Shortest sample that pyperf accepts, in seconds.
SHORTEST = 1e-3
#: Smallest number of samples with a meaningful spread.
FEWEST = 3
_ASKED = ("phase", "sequences", "tokens", "past", "asked_bytes", "error")
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
    flags: str = ""
    flops_nominal: int | None = None  #: convention model
    flops_realised: int | None = None
    flops_executed: int | None = None  #: convention executed, with padded slots
    flops_per_second: float | None = None
    ceiling: float | None = None
    utilisation: float | None = None
    speed_up: float | None = None
    promised_speed_up: float | None = None
    realised_efficiency: float | None = None
    dense_stable: bool | None = None  #: the dense time is stable
    dense_loaded: bool | None = None  #: the dense time was taken under load
    joules: float | None = None
    balance: str = ""
    compiled: bool | None = None
    dtype: str = ""
    asked_bytes: int | None = None
    error: str = ""

    @property
    def is_timed(self) -> bool:
        return self.seconds_median is not None

    @property
    def doubts(self) -> str:
        """Reasons to doubt its time; empty if there are none."""
        found = "invalid" if self.status == "invalid" else "", _doubts(self.stable, self.loaded)
        return ", ".join(filter(None, found))

    @property
    def doubts_of_both(self) -> str:
        """Reasons to doubt its time or the dense time."""
        return _doubts(self.stable and self.dense_stable, self.loaded or self.dense_loaded)


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


def throttled(gpu: dict[str, Any] | None) -> list[str]:
    return [] if gpu is None else list(gpu["throttled"])


def _doubts(stable: bool | None, loaded: bool | None) -> str:
    return ", ".join(filter(None, ("" if stable else "unstable", "loaded" if loaded else "")))


def loaded(hit: int, processes: int) -> str:
    return f"the machine's load exceeded its cores in {hit} of {processes} processes"


def case_rows(timings: Sequence[TimingRecord], ceiling: Callable[[str], float | None]) -> list[CaseRow]:
    """The cases of one scheme, from its processes."""
    if not timings:
        return []
    router = timings[0].cell["router"]
    found: dict[str, list[tuple[TimingRecord, dict[str, Any]]]] = {}
    lacking: dict[str, list[dict[str, Any]]] = {}
    for timing in timings:
        for case in timing.measured.get("cases", []):
            found.setdefault(case["name"], []).append((timing, case))
        for case in timing.measured.get("ran_out", []):
            lacking.setdefault(case["name"], []).append(case)
    rows = [
        _case_row(router, measured, len(timings), len(lacking.get(name, [])), ceiling)
        for name, measured in found.items()
    ]
    known = {"label": router["label"], "router": router["name"]}
    for name, cases in lacking.items():
        if name not in found:
            case = cases[-1]
            values = {field: case[field] for field in _ASKED}
            rows.append(CaseRow(**known, case=name, status="oom", **values))
    ended = [t for t in timings if t.status == "failed" or (t.status != "ok" and not _outgrown(t))]
    if len(ended) == len(timings):
        last = ended[-1]
        rows.append(
            CaseRow(
                **known,
                case="all others" if rows else "all",
                phase="",
                status=last.status,
                asked_bytes=last.asked_bytes,
                error=last.error or "",
            )
        )
    return rows


def _outgrown(timing: TimingRecord) -> bool:
    """True if it lists the cases that ran out of memory and timed all others."""
    return "ran_out" in timing.measured


def _case_row(
    router: dict[str, Any],
    measured: list[tuple[TimingRecord, dict[str, Any]]],
    processes: int,
    ran_out: int,
    ceiling: Callable[[str], float | None],
) -> CaseRow:
    valid = [(of, one) for of, one in measured if not throttled(one["gpu"])]
    timing, case = (valid or measured)[0]
    flags = "; ".join(filter(None, (_flags(measured, processes, ran_out), _unlike(valid))))
    known = {
        "label": router["label"],
        "router": router["name"],
        "case": case["name"],
        "phase": case["phase"],
        **{name: case[name] for name in ("sequences", "tokens", "past")},
        "flops_nominal": case["flops"]["nominal"]["model"],
        "flops_realised": case["flops"]["realised"]["model"],
        "flops_executed": case["flops"]["dispatched"]["executed"],
        "balance": timing.measured["balance"],
        "compiled": timing.measured["compiled"],
        "dtype": timing.environment["dtype"],
    }
    used = valid or measured
    seconds = [value for _, one in used for value in one["seconds"]]
    known |= {"status": "ok" if valid and len(seconds) >= FEWEST else "invalid"}
    if len(seconds) < FEWEST:
        few = "; ".join(filter(None, (f"no time, too few samples: {len(seconds)}", flags)))
        return CaseRow(**known, n=len(seconds), processes=len(used), flags=few)
    spread = summary(seconds)
    short = any(min(one["seconds"]) * one["loops"] < SHORTEST for _, one in used)
    stable = spread["stable"] and not short
    row = CaseRow(
        **known,
        seconds_median=spread["median"],
        seconds_iqr=spread["iqr"],
        n=spread["n"],
        processes=len(used),
        stable=stable,
        loaded=any(of.measured["machine"]["overloaded"] for of, _ in used),
        flags="; ".join(filter(None, ("" if stable else "unstable", flags))),
    )
    if not valid:
        return row
    rate, best = known["flops_executed"] / spread["median"], ceiling(known["dtype"])
    joules = [one["joules"] for _, one in valid if one["joules"] is not None]
    return replace(
        row,
        flops_per_second=rate,
        ceiling=best,
        utilisation=None if best is None else rate / best,
        joules=sum(joules) / len(joules) if joules else None,
    )


def _flags(measured: list[tuple[TimingRecord, dict[str, Any]]], all_of_them: int, ran_out: int) -> str:
    """Remarks on the processes; ``ran_out`` of them ran out of memory."""
    processes = len(measured)
    overloaded = sum(timing.measured["machine"]["overloaded"] for timing, _ in measured)
    slowed = [throttled(case["gpu"]) for _, case in measured]
    reasons = sorted({reason for some in slowed for reason in some})
    texts = []
    if overloaded:
        texts.append(loaded(overloaded, processes))
    if reasons:
        hit = sum(bool(some) for some in slowed)
        which = "invalid" if hit == processes else "left out"
        texts.append(f"throttled in {hit} of {processes} processes ({', '.join(reasons)}): {which}")
    if ran_out:
        texts.append(f"memory ran out in {ran_out} of {all_of_them} processes")
    failed = all_of_them - processes - ran_out
    if failed:
        texts.append(f"{failed} more processes failed")
    return "; ".join(texts)


def _unlike(valid: list[tuple[TimingRecord, dict[str, Any]]]) -> str:
    """Differences between processes whose samples are pooled."""
    texts = []
    compiled = sum(timing.measured["compiled"] for timing, _ in valid)
    if 0 < compiled < len(valid):
        texts.append(f"compiled in {compiled} of {len(valid)} processes")
    for name, convention in (("realised", "model"), ("dispatched", "executed"), ("nominal", "model")):
        counts = sorted({case["flops"][name][convention] for _, case in valid})
        if len(counts) > 1:
            texts.append(f"FLOPs {name} differ between processes ({counts[0]:,} to {counts[-1]:,})")
    return "; ".join(texts)


def held_against(row: CaseRow, dense: CaseRow | None) -> CaseRow:
    """``row`` with its speed-ups over the same case of the ``dense`` row."""
    if dense is None or row.seconds_median is None or dense.seconds_median is None:
        return row
    if row.status == "invalid" or not row.flops_realised or not dense.flops_realised:
        return row
    achieved = dense.seconds_median / row.seconds_median
    promised = dense.flops_realised / row.flops_realised
    return replace(
        row,
        speed_up=achieved,
        promised_speed_up=promised,
        realised_efficiency=achieved / promised,
        dense_stable=dense.stable,
        dense_loaded=dense.loaded,
    )


def memory_rows(timing: TimingRecord) -> list[MemoryRow]:
    router = timing.cell["router"]
    known = {"label": router["label"], "router": router["name"], "status": timing.status}
    known["phase"] = MEMORY[timing.measurement]
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
