"""Timings with plainly made-up figures; nothing here was measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modbench.analysis.frames import plain_records
from modbench.model.config import ModelConfig
from modbench.records.line import key_of
from modbench.records.record import SuiteRecord, TimingKind, TimingRecord
from modbench.records.result import Result
from modbench.records.run import RouterCode, Timed
from modbench.report.times import Times, time_marks
from modbench.train.config import TrainConfig

MODEL = {"vocabulary": 2048, "width": 128, "layers": 4}
TIME = {"samples": 4}
ENVIRONMENT = {
    "cpu": "Imaginary CPU",
    "gpu": None,
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0",
    "dtype": "bfloat16",
}


def timed_of(
    label: str | None,
    router: str | None = None,
    *,
    options: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    batch: int = 4,
    precision: str = "auto",
) -> Timed:
    """The scheme ``label``; None: the machine."""
    named = None
    if label is not None:
        # A label of its own makes a scheme of its own.
        own = {"label": label} if options is None else options
        named = RouterCode(name=router or label.partition("/")[0], options=own)
    return Timed(
        router=named,
        model=ModelConfig(**{**MODEL, **(model or {})}),
        train=TrainConfig(sequence=256, batch=batch, precision=precision),
    )


def make_timing(
    measures: TimingKind,
    timed: Timed,
    measured: dict[str, Any],
    *,
    repetition: int = 1,
    session: str = "session-1",
    environment: dict[str, Any] | None = None,
    **fields: Any,
) -> TimingRecord:
    arguments: dict[str, Any] = {
        "session": session,
        "measures": measures,
        "timed": timed.as_json(),
        "time": TIME,
        "key": timed.key,
        "repetition": repetition,
        "code": {"version": "0.1.0", "commit": "0" * 40, "dirty": False},
        "environment": {**ENVIRONMENT, **(environment or {})},
        "measured": measured,
        "asked_bytes": None,
        "status": "ok",
        "error": None,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
    }
    return TimingRecord.made(**{**arguments, **fields})


def make_case(
    name: str = "forward",
    *,
    seconds: tuple[float, ...] = (0.1, 0.1, 0.1, 0.1),
    flops: int = 10**9,
    throttled: tuple[str, ...] | None = None,
    tokens: int = 256,
    loops: int = 1,
    joules: float | None = None,
) -> dict[str, Any]:
    realised = {"model": flops, "full": 3 * flops, "executed": 5 * flops}
    nominal = {name: 7 * count for name, count in realised.items()}
    dispatched = {name: 2 * count for name, count in realised.items()}  # slots are filled up
    gpu = None
    if throttled is not None:
        gpu = {"clock_mhz": [1, 2], "memory_clock_mhz": [1, 2], "throttled": list(throttled)}
    return {
        "name": name,
        "phase": name.split()[0],
        "sequences": 4,
        "tokens": tokens,
        "past": 0,
        "seconds": list(seconds),
        "loops": loops,
        "flops": {"nominal": nominal, "realised": realised, "dispatched": dispatched},
        "joules": joules,
        "gpu": gpu,
    }


def timed(
    label: str,
    *cases: dict[str, Any],
    overloaded: bool = False,
    balance: str = "forced",
    ran_out: Sequence[dict[str, Any]] = (),
    **fields: Any,
) -> TimingRecord:
    measured = {
        "cases": list(cases),
        "balance": balance,
        "compiled": False,
        "machine": {"overloaded": overloaded, "others": 0.0},
    }
    if ran_out:
        measured["ran_out"] = list(ran_out)
    return make_timing("training", timed_of(label), measured, **fields)


def times_of(
    *results: Result,
    seconds: tuple[float, ...] = (0.097, 0.097, 0.103, 0.103),
    peak: int = 80_000_000,
    overloaded: bool = False,
    **fields: Any,
) -> Times:
    """A session that timed the schemes of ``results``: 100 ± 6 ms and 80 MB each."""
    timings, labels = list[TimingRecord](), dict[str, str]()
    for result in results:
        what = result.run.timed
        if what.key not in labels:
            labels[what.key] = result.label
            cases = [make_case(name, seconds=seconds) for name in ("forward", "train")]
            measured = timed(result.label, *cases, overloaded=overloaded).measured
            timings.append(make_timing("training", what, measured, **fields))
            memory = weighed(result.label, peak).measured
            timings.append(make_timing("training_memory", what, memory, **fields))
    return Times(timings, labels, "fake")


def ceiling(
    flops_per_second: float = 1e12,
    *,
    overloaded: bool = False,
    throttled: Sequence[str] = (),
    copied: float = 2e10,
    **fields: Any,
) -> TimingRecord:
    gemms = [
        {
            "dtype": dtype,
            "component": "head",
            "rows": 1024,
            "inner": 128,
            "columns": 2048,
            "flops_per_second": rate,
        }
        for dtype, rate in (("bfloat16", flops_per_second), ("float32", flops_per_second * 2))
    ]
    measured = {"gemm": gemms, "copy_bytes_per_second": copied, "gpu": None}
    measured |= {"machine": {"overloaded": overloaded, "others": 0.0}}
    if throttled:
        measured |= {"gpu": {"clock_mhz": [1, 2], "memory_clock_mhz": [1, 2], "throttled": throttled}}
    return make_timing("ceiling", timed_of(None), measured, **fields)


def weighed(label: str, peak: int, **fields: Any) -> TimingRecord:
    parts = {"parameters": 10, "gradients": 10, "optimizer": 20, "activations": peak - 40, "peak": peak}
    return make_timing("training_memory", timed_of(label), {"measured": parts}, **fields)


def labels_in(timings: Iterable[TimingRecord]) -> dict[str, str]:
    """Labels by key, as `timed_of` was given them."""
    routers = {timing.key: timing.timed["router"] for timing in timings if timing.timed["router"]}
    return {key: router["options"].get("label", router["name"]) for key, router in routers.items()}


def table_of(*timings: TimingRecord) -> Times:
    """The table of ``timings``; labels as `timed_of` was given them."""
    return Times(timings, labels_in(timings), "fake")


def suite_of(
    timed_under: Mapping[str, Sequence[str]], finished: str = "2026-01-01T00:20:00+00:00"
) -> SuiteRecord:
    """A suite that times the keys ``timed_under`` each label."""
    rows = [{"label": of, "runs": [], "timed": list(keys)} for of, keys in timed_under.items()]
    suite = {"name": "fake", "version": 1, "rows": rows, "wanted": {}}
    return SuiteRecord.made(
        suite=suite,
        key=key_of(suite),
        code={"version": "0.1.0", "commit": "0" * 40, "dirty": False},
        environment=ENVIRONMENT,
        started="2026-01-01T00:00:00+00:00",
        finished=finished,
    )


def rows_of(*timings: TimingRecord) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["label"], row["case"]): row for row in plain_records(table_of(*timings).cases)}


def marks_of(row: Mapping[str, Any]) -> str:
    """Reasons to doubt the time of a case."""
    return time_marks(*(row[name] for name in ("stable", "loaded", "throttled", "host_bound")))
