"""Timings of one session as rows: the cases of each scheme, its memory by part, the machine's ceilings.

Realised efficiency is the measured speed-up divided by the speed-up in FLOPs: (time dense / time routed)
/ (FLOPs dense / FLOPs routed), with realised FLOPs in convention ``model``; dense is the vanilla row of
the same shape, or interpolated between two widths (`modbench.report.timing.dense`). Utilisation is
FLOP/s, convention ``executed`` with padded slots, divided by the fastest plain matmul at the model's
shapes in the same dtype and run.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from modbench.analysis.intervals import summary
from modbench.records.record import TimingKind, TimingRecord, canonical_json
from modbench.records.run import reported_shape
from modbench.report.timing.dense import Dense, TimedCase, dense_case
from modbench.report.timing.values import refuse_incomparable, time_marks

#: Shortest sample that pyperf accepts, in seconds.
SHORTEST = 1e-3
#: Smallest number of samples with a meaningful spread.
FEWEST = 3
#: Kinds of processes with timed cases, in the order of the table.
_TIMED = ("training", "inference")
MEMORY = {"training_memory": "training", "inference_memory": "inference"}
PARTS = ("parameters", "gradients", "optimizer", "cache", "activations", "peak")


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case of one scheme, over all processes that measured it; or, if all its processes ended with
    an error, what was not measured and why. Figures may be None. ``status`` is ``ok``, ``invalid``
    (fewer samples than `FEWEST`, so no time), ``oom`` or ``failed``."""

    label: str
    key: str  #: of the scheme at its shape and batch
    router: str
    model: str  #: JSON, as ``train``
    train: str
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
    flops_nominal: int | None = None  #: convention model
    flops_realised: int | None = None
    flops_executed: int | None = None  #: convention executed, with padded slots
    flops_per_second: float | None = None
    ceiling: float | None = None
    utilisation: float | None = None
    speed_up: float | None = None
    promised_speed_up: float | None = None
    realised_efficiency: float | None = None
    dense: str = ""  #: what it is compared with: timed at the same shape, or interpolated
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

    @property
    def marks(self) -> str:
        """Reasons to doubt its time."""
        return time_marks(self.stable, self.loaded, self.throttled) if self.is_timed else ""

    def compared_to(self, dense: Dense | None) -> "CaseRow":
        """The row with its speed-ups over the same case of the ``dense`` model."""
        if dense is None or self.seconds_median is None or not self.flops_realised:
            return self
        achieved = dense.seconds / self.seconds_median
        promised = dense.flops / self.flops_realised
        compared: list[TimedCase] = [self, *dense.rows]
        return replace(
            self,
            speed_up=achieved,
            promised_speed_up=promised,
            realised_efficiency=achieved / promised,
            dense="interpolated" if dense.is_interpolated else "timed",
            efficiency_marks=time_marks(
                all(row.stable for row in compared),
                any(row.loaded for row in compared),
                any(row.throttled for row in compared),
            ),
        )


#: A process and one of its cases.
_Sample = tuple[TimingRecord, dict[str, Any]]


@dataclass(frozen=True)
class TimingTable:
    """All timings of one session. Raises UserError: machines or settings differ."""

    timings: Sequence[TimingRecord]
    labels: Mapping[str, str]  #: of rows by key; others are no longer part of the suite
    suite: str = ""  #: its name

    def __post_init__(self) -> None:
        refuse_incomparable(self.timings)

    @cached_property
    def ceilings(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The fastest matmul of each model and dtype."""
        ceilings = {
            (_shape(timing.timed), gemm["dtype"], gemm["flops_per_second"]): gemm
            for timing in self.measured("ceiling")
            for gemm in timing.measured["gemm"]
        }
        return {key[:2]: ceilings[key] for key in sorted(ceilings)}

    def measured(self, kind: TimingKind) -> list[TimingRecord]:
        """The processes of ``kind`` that succeeded."""
        return [t for t in self.timings if t.measures == kind and t.status == "ok"]

    @cached_property
    def cases(self) -> list[CaseRow]:
        """Rows by label; cases in the order of timing."""
        of_scheme = defaultdict(list)
        for timing in self.timings:
            if timing.measures in _TIMED and timing.key in self.labels:
                order = self.labels[timing.key], timing.key, _TIMED.index(timing.measures)
                of_scheme[order].append(timing)
        rows = [row for _, timings in sorted(of_scheme.items()) for row in self._cases_of(timings)]
        dense = [row for row in rows if row.router == "vanilla" and row.is_timed]
        return [row.compared_to(dense_case(row, dense)) for row in rows]

    def _cases_of(self, timings: Sequence[TimingRecord]) -> list[CaseRow]:
        """The cases of training or of inference of one scheme, from its processes."""
        by_name: dict[str, list[_Sample]] = defaultdict(list)
        for timing in timings:
            for case in timing.measured.get("cases", []):
                by_name[case["name"]].append((timing, case))
        rows = [self._case(samples, len(timings) - len(samples)) for samples in by_name.values()]
        if all(timing.status != "ok" for timing in timings):
            case = f"{'all others' if rows else 'all'} of {timings[-1].measures}"
            last = self._outcome(timings[-1])
            rows.append(CaseRow(**last, case=case, failed=len(timings)))
        return rows

    def _case(self, samples: list[_Sample], failed: int) -> CaseRow:
        """One case that was measured; other processes ``failed`` or ran out of memory."""
        cool = [(timing, case) for timing, case in samples if not _throttled(case["gpu"])]
        used = cool or samples
        timing, case = used[0]
        seconds = [value for _, sample in used for value in sample["seconds"]]
        executed = case["flops"]["dispatched"]["executed"]
        row = CaseRow(
            **self._scheme(timing),
            case=case["name"],
            **{name: case[name] for name in ("phase", "sequences", "tokens", "past")},
            n=len(seconds),
            processes=len(used),
            failed=failed,
            loaded=any(of.measured["machine"]["overloaded"] for of, _ in used),
            throttled=not cool,
            flops_nominal=case["flops"]["nominal"]["model"],
            flops_realised=case["flops"]["realised"]["model"],
            flops_executed=executed,
            balance=timing.measured["balance"],
            compiled=timing.measured["compiled"],
            dtype=timing.environment["dtype"],
        )
        if len(seconds) < FEWEST:
            return replace(row, status="invalid", error=f"no time, too few samples: {len(seconds)}")
        spread = summary(seconds)
        short = any(min(sample["seconds"]) * sample["loops"] < SHORTEST for _, sample in used)
        rate = executed / spread["median"]
        best = self.ceilings.get((row.model, row.dtype), {}).get("flops_per_second")
        joules = [sample["joules"] for _, sample in used if sample["joules"] is not None]
        return replace(
            row,
            seconds_median=spread["median"],
            seconds_iqr=spread["iqr"],
            stable=spread["stable"] and not short,
            flops_per_second=rate,
            ceiling=best,
            utilisation=None if best is None else rate / best,
            joules=sum(joules) / len(joules) if joules else None,
        )

    @cached_property
    def memory(self) -> list[dict[str, Any]]:
        """Bytes of each scheme and phase: each of `PARTS`, measured and ``_predicted``."""
        rows = []
        for timing in self.timings:
            if timing.measures in MEMORY and timing.key in self.labels:
                row = self._outcome(timing) | {"phase": MEMORY[timing.measures]}
                for part in PARTS:
                    row[part] = timing.measured.get("measured", {}).get(part)
                    row[f"{part}_predicted"] = timing.measured.get("predicted", {}).get(part)
                rows.append(row)
        return sorted(rows, key=lambda row: (row["label"], row["phase"]))

    def _scheme(self, timing: TimingRecord) -> dict[str, Any]:
        timed = timing.timed
        train = {name: timed[name] for name in ("sequence", "batch", "precision")}
        return {
            "label": self.labels[timing.key],
            "key": timing.key,
            "router": timed["router"]["name"],
            "model": _shape(timed),
            "train": canonical_json(train),
        }

    def _outcome(self, timing: TimingRecord) -> dict[str, Any]:
        ended = {"status": timing.status, "asked_bytes": timing.asked_bytes}
        return self._scheme(timing) | ended | {"error": timing.error or ""}


def _throttled(gpu: dict[str, Any] | None) -> bool:
    return gpu is not None and bool(gpu["throttled"])


def _shape(timed: Mapping[str, Any]) -> str:
    return canonical_json(reported_shape(timed["model"]))
