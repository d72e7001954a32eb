"""Timings of one session as rows: the cases of each scheme, its memory by part, the machine's ceilings.

Realised efficiency is the measured speed-up divided by the speed-up in FLOPs: (time dense / time routed)
/ (FLOPs dense / FLOPs routed), with realised FLOPs in convention ``model``; dense is the vanilla row of
the same shape, or interpolated between two widths. Utilisation is
FLOP/s, convention ``executed`` with padded slots, divided by the fastest plain matmul at the model's
shapes in the same dtype and run.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import exp, log
from statistics import fmean
from typing import Any

from modbench.analysis.noise import summary
from modbench.records.record import TimingKind, TimingRecord, canonical_json
from modbench.records.run import reported_shape
from modbench.report.timing.values import refuse_incomparable, time_marks

#: Largest relative difference of MLP width over width between shapes of one family: widths are rounded.
_ROUNDED = 0.05


#: One case of one scheme, over all processes that measured it; or, if all its processes ended with an
#: error, what was not measured and why. The keys are `COLUMNS`; a figure may be None.
Case = dict[str, Any]


@dataclass(frozen=True)
class Dense:
    """Time and realised FLOPs of a dense case. ``rows``: those that it rests on, one of the same shape
    or two of neighbouring widths."""

    seconds: float
    flops: float
    rows: Sequence[Case]

    @property
    def is_interpolated(self) -> bool:
        return len(self.rows) > 1


def dense_case(row: Case, dense: Sequence[Case]) -> Dense | None:
    """The dense case that ``row`` is compared with, from the timed ``dense`` rows; of several of one
    shape the first counts.

    Without one of the same shape, time and FLOPs are interpolated linearly in logarithms between the two
    next widths of dense models with otherwise equal shape and settings. None outside the timed widths.
    """
    shape = _shape_of(row["model"])
    family: dict[float, Case] = {}
    for other in dense:
        is_same = all(other[name] == row[name] for name in ("case", "train"))
        if is_same and other["flops_realised"]:
            if other["model"] == row["model"]:
                return Dense(other["seconds_median"] or 0.0, other["flops_realised"], [other])
            if _same_family(shape, _shape_of(other["model"])):
                family.setdefault(_shape_of(other["model"])["width"], other)
    if not shape.get("width"):
        return None
    below = max((width for width in family if width < shape["width"]), default=None)
    above = min((width for width in family if width > shape["width"]), default=None)
    if below is None or above is None:
        return None
    part = log(shape["width"] / below) / log(above / below)
    ends = family[below], family[above]

    def between(low: float, high: float) -> float:
        return exp((1 - part) * log(low) + part * log(high))

    seconds = between(*(end["seconds_median"] or 0.0 for end in ends))
    return Dense(seconds, between(*(float(end["flops_realised"] or 0) for end in ends)), ends)


def nearest_dense(row: Case, cases: Sequence[Case]) -> Case | None:
    """Of the timed dense ``cases`` with the name and settings of ``row``, that of its shape, or that of
    the nearest one by width squared times layers."""
    same = [
        of
        for of in cases
        if of["router"] == "vanilla" and all(of[name] == row[name] for name in ("case", "train"))
    ]

    def apart(of: Case) -> tuple[bool, float]:
        return of["model"] != row["model"], abs(_size_of(of["model"]) - _size_of(row["model"]))

    return min(same, key=apart, default=None)


def _size_of(model: str) -> float:
    shape = _shape_of(model)
    return float(shape.get("width", 0) ** 2 * shape.get("layers", 0))


@cache
def _shape_of(model: str) -> dict[str, Any]:
    return dict(json.loads(model))


def _same_family(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Return True if two shapes differ in their width only, and in the MLP's in proportion to it."""
    widths = ("width", "mlp_width")
    if any(ours.get(name) != theirs.get(name) for name in {*ours, *theirs} - {*widths}):
        return False
    if not ours.get("mlp_width") or not theirs.get("mlp_width"):
        return ours.get("mlp_width") == theirs.get("mlp_width")
    ratio = ours["mlp_width"] / ours["width"] / (theirs["mlp_width"] / theirs["width"])
    return bool(abs(ratio - 1) < _ROUNDED)


#: Shortest sample that pyperf accepts, in seconds.
SHORTEST = 1e-3
#: Smallest number of samples with a meaningful spread.
FEWEST = 3
#: Largest share of its time that a GPU may wait for the host while it reads a prompt or decodes: beyond
#: it the time is that of Python rather than of the scheme.
HOST_BOUND = 0.3
#: Kinds of processes with timed cases, in the order of the table.
_TIMED = ("training", "inference")
MEMORY = {"training_memory": "training", "inference_memory": "inference"}
PARTS = ("parameters", "gradients", "optimizer", "cache", "activations", "peak")


#: Columns of timings.csv after the shape; docs/columns.md defines them. The status is ok,
#: invalid (fewer samples than `FEWEST`, so no time), oom or failed.
COLUMNS = (
    *("label", "key", "router", "model", "train", "case", "phase", "sequences", "tokens", "past"),
    *("status", "seconds_median", "seconds_iqr", "n", "processes", "failed", "stable", "loaded"),
    *("throttled", "host_share", "host_bound", "clock_mhz", "power_capped", "flops_nominal"),
    *("flops_realised", "flops_executed", "flops_per_second", "ceiling", "utilisation", "speed_up"),
    *("promised_speed_up", "realised_efficiency", "dense", "efficiency_marks", "joules", "balance"),
    *("compiled", "graphs", "breaks", "dtype", "asked_bytes", "error"),
)
_TEXTS = dict.fromkeys(("phase", "dense", "efficiency_marks", "balance", "dtype", "error"), "")
_MARKS = ("stable", "loaded", "throttled", "host_bound")


def _case(**known: Any) -> Case:
    """A case with what is ``known`` of it."""
    return {**dict.fromkeys(COLUMNS), **_TEXTS, "status": "ok", "n": 0, "processes": 0, **known}


def is_timed(case: Case) -> bool:
    """Return True unless no process measured ``case``."""
    return case["seconds_median"] is not None


def marks_of(case: Case) -> str:
    """Reasons to doubt the time of ``case``; empty if there are none."""
    return time_marks(*(case[name] for name in _MARKS)) if is_timed(case) else ""


def _compared(case: Case, dense: Dense | None) -> Case:
    """``case`` with its speed-ups over the same case of the ``dense`` model."""
    if dense is None or not is_timed(case) or not case["flops_realised"]:
        return case
    achieved = dense.seconds / case["seconds_median"]
    promised = dense.flops / case["flops_realised"]
    rows = [case, *dense.rows]
    doubts = (any(row[name] for row in rows) for name in _MARKS[1:])
    return case | {
        "speed_up": achieved,
        "promised_speed_up": promised,
        "realised_efficiency": achieved / promised,
        "dense": "interpolated" if dense.is_interpolated else "timed",
        "efficiency_marks": time_marks(all(row["stable"] for row in rows), *doubts),
    }


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
    def cases(self) -> list[Case]:
        """Rows by label; cases in the order of timing."""
        of_scheme = defaultdict(list)
        for timing in self.timings:
            if timing.measures in _TIMED and timing.key in self.labels:
                order = self.labels[timing.key], timing.key, _TIMED.index(timing.measures)
                of_scheme[order].append(timing)
        rows = [row for _, timings in sorted(of_scheme.items()) for row in self._cases_of(timings)]
        dense = [row for row in rows if row["router"] == "vanilla" and is_timed(row)]
        return [_compared(row, dense_case(row, dense)) for row in rows]

    def _cases_of(self, timings: Sequence[TimingRecord]) -> list[Case]:
        """The cases of training or of inference of one scheme, from its processes."""
        by_name: dict[str, list[_Sample]] = defaultdict(list)
        for timing in timings:
            for case in timing.measured.get("cases", []):
                by_name[case["name"]].append((timing, case))
        rows = [self._measured(samples, len(timings) - len(samples)) for samples in by_name.values()]
        rows = [_with_host_share(row, rows) for row in rows]
        if all(timing.status != "ok" for timing in timings):
            case = f"{'all others' if rows else 'all'} of {timings[-1].measures}"
            last = self._outcome(timings[-1])
            rows.append(_case(**last, case=case, failed=len(timings)))
        return rows

    def _measured(self, samples: list[_Sample], failed: int) -> Case:
        """One case that was measured; other processes ``failed`` or ran out of memory."""
        cool = [
            (timing, case) for timing, case in samples if not (case["gpu"] and case["gpu"]["throttled"])
        ]
        used = cool or samples
        timing, case = used[0]
        seconds = [value for _, sample in used for value in sample["seconds"]]
        executed = case["flops"]["dispatched"]["executed"]
        row = _case(
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
            **timing.measured.get("programs", {}),
            dtype=timing.environment["dtype"],
        )
        if len(seconds) < FEWEST:
            return row | {"status": "invalid", "error": f"no time, too few samples: {len(seconds)}"}
        spread = summary(seconds)
        short = any(min(sample["seconds"]) * sample["loops"] < SHORTEST for _, sample in used)
        rate = executed / spread["median"]
        best = self.ceilings.get((row["model"], row["dtype"]), {}).get("flops_per_second")
        joules = [sample["joules"] for _, sample in used if sample["joules"] is not None]
        shares = [sample["host_share"] for _, sample in used if "host_share" in sample]
        share = fmean(shares) if shares else None
        gpus = [sample["gpu"] for _, sample in used if (sample["gpu"] or {}).get("mean_clock_mhz")]
        return row | {
            "host_share": share,
            "host_bound": None if share is None else share > HOST_BOUND,
            "clock_mhz": fmean(gpu["mean_clock_mhz"] for gpu in gpus) if gpus else None,
            "power_capped": any(gpu["power_capped"] for gpu in gpus) if gpus else None,
            "seconds_median": spread["median"],
            "seconds_iqr": spread["iqr"],
            "stable": spread["stable"] and not short,
            "flops_per_second": rate,
            "ceiling": best,
            "utilisation": None if best is None else rate / best,
            "joules": sum(joules) / len(joules) if joules else None,
        }

    @cached_property
    def memory(self) -> list[dict[str, Any]]:
        """Bytes of each scheme and phase: each of `PARTS`."""
        rows = []
        for timing in self.timings:
            if timing.measures in MEMORY and timing.key in self.labels:
                row = self._outcome(timing) | {"phase": MEMORY[timing.measures]}
                for part in PARTS:
                    row[part] = timing.measured.get("measured", {}).get(part)
                rows.append(row)
        return sorted(rows, key=lambda row: (row["label"], row["phase"]))

    def _scheme(self, timing: TimingRecord) -> dict[str, Any]:
        timed = timing.timed
        assert timed["router"] is not None  # as of ceilings
        train = {name: of for name, of in timed.items() if name in ("sequence", "batch", "precision")}
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


def _with_host_share(row: Case, rows: Sequence[Case]) -> Case:
    """``row`` with the host's share, if it is the training step of ``rows``, which have steps in a row,
    too."""
    in_a_row = [of["seconds_median"] for of in rows if of["phase"] == "train" and of["case"] != "train"]
    if row["case"] != "train" or not in_a_row or in_a_row[0] is None or not is_timed(row):
        return row
    return row | {"host_share": max(0.0, 1 - in_a_row[0] / row["seconds_median"])}


def _shape(timed: Mapping[str, Any]) -> str:
    return canonical_json(reported_shape(timed["model"]))


#: The metric of each timed case.
_METRICS = {"forward": "forward_seconds", "train": "train_step_seconds"}


def timed_values(table: TimingTable | None) -> dict[str, dict[str, dict[str, Any]]]:
    """The timed metrics of each scheme at its shape and batch, by key: median, iqr, n, stable, loaded
    and throttled; of memory, median and n."""
    by_key: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for case in table.cases if table else ():
        if case["case"] in _METRICS and is_timed(case):
            figures = {name: case[f"seconds_{name}"] for name in ("median", "iqr")}
            figures |= {name: case[name] for name in ("n", "stable", "loaded", "throttled")}
            by_key[case["key"]].setdefault(_METRICS[case["case"]], figures)
    for memory in table.memory if table else ():
        if memory["phase"] == "training" and memory["peak"] is not None:
            by_key[memory["key"]]["peak_memory_bytes"] = {"median": memory["peak"], "n": 1}
    return dict(by_key)
