"""Timings of one session as frames: cases of each scheme, its memory by part, ceilings of the machine.
Which timings may be compared: those of one session, one machine and one set of settings.

Realised efficiency is the measured speed-up divided by the speed-up in FLOPs: (time dense / time routed)
/ (FLOPs dense / FLOPs routed), with realised FLOPs in convention ``model``; dense is the vanilla row of
the same shape, or interpolated between two widths. Utilisation is FLOP/s, convention ``executed`` with
padded slots, divided by the fastest plain matmul at the model's shapes in the same dtype and run.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import log, prod
from statistics import fmean
from typing import TYPE_CHECKING, Any

from modbench.errors import UserError
from modbench.records.record import SuiteRecord, TimingKind, TimingRecord, canonical_json
from modbench.records.run import reported_shape
from modbench.records.store import latest

if TYPE_CHECKING:
    import pandas as pd

#: Parts of the environment that must be equal in a session: the machine, and, with the environment's
#: ``variables``, its settings.
HARDWARE = ("cpu", "gpu", "cores", "threads", "driver", "cuda", "torch")
_SETTINGS = ("python", "deterministic")
#: Variables of the C allocator; memory is measured under values of its own.
_ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_")
#: Parts of the environment that make a processor type.
PROCESSOR = ("cpu", "instructions", "gpu", "dtype", "threads")
#: Mark of a difference between rows of different processor types.
MARK = "‡"
#: Shortest sample that pyperf accepts, in seconds.
_SHORTEST = 1e-3
#: Smallest number of samples with a meaningful spread.
_FEWEST = 3
#: Largest share of its time that a GPU may wait for the host while it reads a prompt or decodes: beyond
#: it the time is that of Python rather than of the scheme.
HOST_BOUND = 0.3
#: Largest relative difference of MLP width over width between shapes of one family: widths are rounded.
_ROUNDED = 0.05
#: Kinds of processes with timed cases, in the order of the table.
_TIMED = ("training", "inference")
#: Parts of memory, in bytes.
PARTS = ("parameters", "gradients", "optimizer", "cache", "activations", "peak")
#: The metric of each timed case.
_METRICS = {"forward": "forward_seconds", "train": "train_step_seconds"}

#: What names a scheme, and columns that compare one of its cases with a dense one.
_SCHEME = ("label", "key", "router", "model", "train")
_COMPARED = ("speed_up", "promised_speed_up", "realised_efficiency", "dense", "efficiency_marks")
#: Columns of `Times.cases`; docs/columns.md defines them. The status is ok, invalid (fewer samples than
#: `_FEWEST`, so no time), oom or failed.
_CASES = (
    *(*_SCHEME, "case", "phase", "sequences", "tokens", "past", "status", "seconds_median"),
    *("seconds_iqr", "n", "processes", "failed", "stable", "loaded", "throttled", "host_share"),
    *("host_bound", "clock_mhz", "power_capped", "flops_nominal", "flops_realised", "flops_executed"),
    *("flops_per_second", "ceiling", "utilisation", *_COMPARED, "joules", "balance", "compiled"),
    *("graphs", "breaks", "dtype", "asked_bytes", "error"),
)
_MEMORIES = (*_SCHEME, "status", "asked_bytes", "error", "phase", *PARTS)
_CEILINGS = ("model", "dtype", "flops_per_second", "component", "rows", "inner", "columns")
#: Types of the columns that are no decimal numbers.
_TYPES = {
    **dict.fromkeys((*_SCHEME, "case", "phase", "status", "dense", "efficiency_marks"), "string"),
    **dict.fromkeys(("balance", "dtype", "error", "component"), "string"),
    **dict.fromkeys(("sequences", "tokens", "past", "n", "processes", "failed", "graphs"), "Int64"),
    **dict.fromkeys(("flops_nominal", "flops_realised", "flops_executed", "breaks"), "Int64"),
    **dict.fromkeys(("asked_bytes", *PARTS, "rows", "inner", "columns"), "Int64"),
    **dict.fromkeys(("stable", "loaded", "throttled", "host_bound", "power_capped"), "boolean"),
    "compiled": "boolean",
}


def machine_in_words(environment: Mapping[str, Any], parts: Sequence[str] = HARDWARE) -> str:
    """Description of the machine in ``environment``."""
    named = (name for name in parts if environment.get(name) is not None)
    return ", ".join(f"{name} {environment[name]}" for name in named)


def settings_of(environment: Mapping[str, Any], kind: TimingKind) -> dict[str, str]:
    """Settings in ``environment`` that must be equal in a process of ``kind`` and all others."""
    variables = environment.get("variables", {})
    if kind.endswith("memory"):
        variables = {name: text for name, text in variables.items() if not name.startswith(_ALLOCATOR)}
    named = {name: str(environment[name]) for name in _SETTINGS if environment.get(name) is not None}
    return named | variables


def newest_session(timings: Sequence[TimingRecord]) -> list[TimingRecord]:
    """The timings of the session that was continued last, one of each job; of those of the newest
    version of the measurement."""
    newest = max(timings, key=lambda timing: (timing.protocol or 1, timing.started_at, timing.session))
    return latest((of for of in timings if of.session == newest.session), key=lambda of: of.job)


def labels_of(suites: Sequence[SuiteRecord]) -> dict[str, str]:
    """The label of each timed scheme and shape, by key. Where two suites give a label to different ones,
    such as before and after an option was changed, the later suite counts."""
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for record in reversed(suites):
        rows = [row for row in record.suite.rows if row.label not in taken]
        taken |= {row.label for row in rows}
        labels = {key: row.label for row in reversed(rows) for key in row.timed} | labels
    return labels


def refuse_incomparable(timings: Sequence[TimingRecord]) -> None:
    """Raises UserError: the timings differ in machine, settings or version of the measurement; the
    sentence names the difference."""
    # Variables of the allocator differ between a time and a memory of one session.
    environments = [
        {"machine": machine_in_words(timing.environment), "protocol": str(timing.protocol or 1)}
        | settings_of(timing.environment, "training_memory")
        for timing in timings
    ]
    for name in sorted({name for environment in environments for name in environment}):
        values = {environment.get(name, "not set") for environment in environments}
        if len(values) > 1:
            raise UserError(
                f"timings of one session with different {name} are not compared: "
                f"{' and '.join(f'({text})' for text in sorted(values))}; time all of them under one "
                "with `modbench time --again`"
            )


def time_marks(stable: bool | None, *doubts: bool | None) -> str:
    """Those of ``unstable``, ``loaded``, ``throttled`` and ``host-bound`` that hold; ``doubts``: the
    last three, or the first of them."""
    marks = zip(
        ("unstable", "loaded", "throttled", "host-bound"), (stable is False, *doubts), strict=False
    )
    return ", ".join(mark for mark, holds in marks if holds)


def processor_types(environments: Iterable[Mapping[str, Any]]) -> list[str]:
    """All processor types in ``environments``, sorted; without instruction sets if one lacks them. The
    type decides on the last digits of a run, besides the seed."""
    environments = [*environments]
    parts = list(PROCESSOR)
    if any("instructions" not in environment for environment in environments):
        parts.remove("instructions")
    return sorted({machine_in_words(environment, parts) for environment in environments})


@dataclass(frozen=True)
class Times:
    """All timings of one session. Raises UserError: machines or settings differ."""

    timings: Sequence[TimingRecord]
    labels: Mapping[str, str]  #: of rows by key; others are no longer part of the suite
    suite: str = ""  #: its name

    def __post_init__(self) -> None:
        refuse_incomparable(self.timings)

    def measured(self, kind: TimingKind) -> list[TimingRecord]:
        """The processes of ``kind`` that succeeded."""
        return [of for of in self.timings if of.measures == kind and of.status == "ok"]

    @cached_property
    def ceilings(self) -> "pd.DataFrame":
        """The fastest matmul of each model and dtype."""
        ran = self.measured("ceiling")
        rows = [{"model": _shape(of), **gemm} for of in ran for gemm in of.measured["gemm"]]
        by_rate = _frame(rows, _CEILINGS).sort_values(list(_CEILINGS[:3]), kind="stable")
        return by_rate.drop_duplicates(["model", "dtype"], keep="last")

    @cached_property
    def memory(self) -> "pd.DataFrame":
        """A row for each scheme and phase, with the bytes of each of `PARTS`, by label."""
        rows = [
            self._outcome(of)
            | {"phase": of.measures.removesuffix("_memory")}
            | of.measured.get("measured", {})
            for of in self.timings
            if of.measures.endswith("_memory") and of.key in self.labels
        ]
        return _frame(rows, _MEMORIES).sort_values(["label", "phase"], kind="stable", ignore_index=True)

    @cached_property
    def cases(self) -> "pd.DataFrame":
        """A row for each case of each scheme, over all processes that measured it; and one for what was
        not measured since all processes ended with an error. By label; cases in the order of timing."""
        from modbench.analysis.frames import tuples_of

        processes = defaultdict(list)
        for timing in self.timings:
            if timing.measures in _TIMED and timing.key in self.labels:
                order = self.labels[timing.key], timing.key, _TIMED.index(timing.measures)
                processes[order].append(timing)
        measured = [row for _, of in sorted(processes.items()) for row in self._pooled(of)]
        cases = self._with_shares(_frame(measured, _CASES))
        rows = tuples_of(cases)
        dense = [of for of in rows if of.router == "vanilla" and of.seconds_median is not None]
        return cases.assign(**_frame([_compared(row, dense) for row in rows], _COMPARED))

    def _pooled(self, processes: Sequence[TimingRecord]) -> Iterator[dict[str, Any]]:
        """The rows of training or inference of one scheme, from its processes."""
        samples: dict[str, list[_Sample]] = defaultdict(list)
        for timing in processes:
            for case in timing.measured.get("cases", ()):
                samples[case["name"]].append((timing, case))
        for of_case in samples.values():
            yield self._case(of_case) | {"failed": len(processes) - len(of_case)}
        if all(timing.status != "ok" for timing in processes):
            name = f"{'all others' if samples else 'all'} of {processes[-1].measures}"
            counts = {"n": 0, "processes": 0, "failed": len(processes)}
            yield self._outcome(processes[-1]) | {"case": name, **counts}

    def _case(self, samples: "Sequence[_Sample]") -> dict[str, Any]:
        """One case, from the processes that measured it."""
        from modbench.analysis.noise import summary

        cool = [sample for sample in samples if not (sample[1]["gpu"] or {}).get("throttled")]
        timing, case = (cool or samples)[0]
        cases = [of for _, of in cool or samples]
        seconds = [value for of in cases for value in of["seconds"]]
        row = {
            **self._scheme(timing),
            **{name: case[name] for name in ("phase", "sequences", "tokens", "past")},
            "case": case["name"],
            "status": "ok",
            "n": len(seconds),
            "processes": len(cases),
            "loaded": any(of.measured["machine"]["overloaded"] for of, _ in cool or samples),
            "throttled": not cool,
            "flops_nominal": case["flops"]["nominal"]["model"],
            "flops_realised": case["flops"]["realised"]["model"],
            "flops_executed": case["flops"]["dispatched"]["executed"],
            "balance": timing.measured["balance"],
            "compiled": timing.measured["compiled"],
            **timing.measured.get("programs", {}),
            "dtype": timing.environment["dtype"],
        }
        if len(seconds) < _FEWEST:
            return row | {"status": "invalid", "error": f"no time, too few samples: {len(seconds)}"}
        spread = summary(seconds)
        is_short = any(min(of["seconds"]) * of["loops"] < _SHORTEST for of in cases)
        gpus = [of["gpu"] for of in cases if (of["gpu"] or {}).get("mean_clock_mhz")]
        return row | {
            "seconds_median": spread["median"],
            "seconds_iqr": spread["iqr"],
            "stable": spread["stable"] and not is_short,
            "host_share": _mean(of.get("host_share") for of in cases),
            "clock_mhz": _mean(gpu["mean_clock_mhz"] for gpu in gpus),
            "power_capped": any(gpu["power_capped"] for gpu in gpus) if gpus else None,
            "joules": _mean(of["joules"] for of in cases),
        }

    def _with_shares(self, cases: "pd.DataFrame") -> "pd.DataFrame":
        """``cases`` with their utilisation, and which wait for the host. The host's share of a training
        step is what it takes less where steps follow each other without a wait."""
        seconds, is_step = cases["seconds_median"], cases["case"] == "train"
        best = self.ceilings.set_index(["model", "dtype"])["flops_per_second"].rename("best")
        in_a_row = cases[(cases["phase"] == "train") & ~is_step].drop_duplicates("key").set_index("key")
        with_both = cases.join(best, on=["model", "dtype"]).join(
            in_a_row["seconds_median"].rename("in_a_row"), on="key"
        )
        ceiling = with_both["best"].where(seconds.notna())
        rate = cases["flops_executed"].astype("Float64") / seconds
        of_step = (1 - with_both["in_a_row"] / seconds).clip(lower=0).where(is_step)
        return cases.assign(
            flops_per_second=rate,
            ceiling=ceiling,
            utilisation=rate / ceiling,
            host_bound=cases["host_share"] > HOST_BOUND,
            host_share=of_step.fillna(cases["host_share"]),
        )

    def _scheme(self, timing: TimingRecord) -> dict[str, Any]:
        timed = timing.timed
        assert timed["router"] is not None  # as of ceilings
        train = {name: of for name, of in timed.items() if name not in ("router", "model")}
        scheme = self.labels[timing.key], timing.key, timed["router"]["name"], _shape(timing)
        return dict(zip(_SCHEME, (*scheme, canonical_json(train)), strict=True))

    def _outcome(self, timing: TimingRecord) -> dict[str, Any]:
        ended = ("status", "asked_bytes", "error")
        return self._scheme(timing) | {name: getattr(timing, name) for name in ended}


#: A process and one of its cases.
_Sample = tuple[TimingRecord, dict[str, Any]]


def timed_frame(times: Times) -> "pd.DataFrame":
    """The timed metrics of each scheme at its shape and batch, by key: ``METRIC_median``, ``_iqr``,
    ``_n``, ``_stable``, ``_loaded`` and ``_throttled``; of memory, ``_median`` and ``_n``."""
    import pandas as pd

    shown = times.cases.rename(columns={"seconds_median": "median", "seconds_iqr": "iqr"})
    timed = shown[shown["median"].notna()].drop_duplicates(["key", "case"]).set_index("key")
    parts = ["median", "iqr", "n", "stable", "loaded", "throttled"]
    frames = [timed.loc[timed["case"] == of, parts].add_prefix(f"{_METRICS[of]}_") for of in _METRICS]
    with_peak = times.memory[(times.memory["phase"] == "training") & times.memory["peak"].notna()]
    peak = with_peak.drop_duplicates("key", keep="last").set_index("key")["peak"]
    one = pd.Series(1, peak.index, dtype="Int64")
    peaks = pd.DataFrame({"peak_memory_bytes_median": peak, "peak_memory_bytes_n": one})
    return pd.concat([*frames, peaks], axis=1)


def _frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> "pd.DataFrame":
    """``rows`` as a frame of ``columns`` with nullable types; of integers beyond 64 bits, objects."""
    import pandas as pd

    frame = pd.DataFrame([*rows], columns=[*columns], dtype=object)

    def kind(name: str) -> str:
        kind = _TYPES.get(name, "Float64")
        return "object" if kind == "Int64" and (frame[name].dropna() >= 2**63).any() else kind

    return frame.astype({name: kind(name) for name in columns})


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _shape(timing: TimingRecord) -> str:
    return canonical_json(reported_shape(timing.timed["model"]))


def _compared(case: Any, dense: Sequence[Any]) -> dict[str, Any]:
    """The speed-ups of ``case`` over the same case of a ``dense`` model; empty if there is none."""
    ends = dense_cases(case, dense) if case.seconds_median is not None and case.flops_realised else []
    if not ends:
        return {}
    achieved = prod((end.seconds_median / case.seconds_median) ** part for end, part in ends)
    promised = prod((end.flops_realised / case.flops_realised) ** part for end, part in ends)
    rows = [case, *(end for end, _ in ends)]
    doubts = (any(getattr(of, name) for of in rows) for name in ("loaded", "throttled", "host_bound"))
    return {
        "speed_up": achieved,
        "promised_speed_up": promised,
        "realised_efficiency": achieved / promised,
        "dense": "interpolated" if len(ends) > 1 else "timed",
        "efficiency_marks": time_marks(all(of.stable for of in rows), *doubts),
    }


def dense_cases(case: Any, dense: Sequence[Any]) -> list[tuple[Any, float]]:
    """The timed ``dense`` cases that ``case`` is compared with, each with its part in logarithms of time
    and FLOPs: the first of the same shape and settings.

    Without one, the two next widths of dense models with otherwise equal shape and settings, between
    which the logarithms are linear in that of the width. Empty outside the timed widths.
    """
    same = [of for of in dense if (of.case, of.train) == (case.case, case.train) and of.flops_realised]
    if of_shape := [of for of in same if of.model == case.model]:
        return [(of_shape[0], 1.0)]
    shape = shape_of(case.model)
    family = [of for of in reversed(same) if _same_family(shape, shape_of(of.model))]
    by_width = {shape_of(of.model)["width"]: of for of in family}
    below = max((width for width in by_width if width < shape["width"]), default=None)
    above = min((width for width in by_width if width > shape["width"]), default=None)
    if below is None or above is None:
        return []
    part = log(shape["width"] / below) / log(above / below)
    return [(by_width[below], 1 - part), (by_width[above], part)]


@cache
def shape_of(model: str) -> dict[str, Any]:
    """The shape that a column ``model`` has as JSON."""
    return dict(json.loads(model))


def _same_family(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Return True if two shapes differ in their width only, and in the MLP's in proportion to it."""
    rest = [
        {name: of for name, of in shape.items() if name not in ("width", "mlp_width")}
        for shape in (ours, theirs)
    ]
    if rest[0] != rest[1]:
        return False
    own, other = ((shape.get("mlp_width") or 0) / shape["width"] for shape in (ours, theirs))
    return bool(abs(own - other) <= _ROUNDED * other)
