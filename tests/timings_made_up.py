"""Timings with plainly made-up figures; nothing here was measured."""

from collections.abc import Sequence
from typing import Any

from modbench.records.record import TimingRecord, cell_key
from modbench.report.timing.table import CaseRow, TimingTable

MODEL = {"vocabulary": 2048, "width": 128, "layers": 4}
TRAIN = {"sequence": 256, "batch": 4, "precision": "auto"}
TIME = {"samples": 4}
ENVIRONMENT = {
    "cpu": "Imaginary CPU",
    "gpu": None,
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0",
    "dtype": "bfloat16",
}


def cell_of(label: str | None, router: str | None = None) -> dict[str, Any]:
    named = None
    if label is not None:
        name = router or label.partition("/")[0]
        named = {"name": name, "options": {}, "plugin_sha256": None, "label": label}
    return {"router": named, "model": MODEL, "train": TRAIN, "time": TIME}


def make_timing(
    measurement: str,
    cell: dict[str, Any],
    measured: dict[str, Any],
    *,
    repetition: int = 1,
    run: str = "run-1",
    environment: dict[str, Any] | None = None,
    **fields: Any,
) -> TimingRecord:
    arguments: dict[str, Any] = {
        "run": run,
        "suite": {"name": "fake", "version": 1},
        "measurement": measurement,
        "cell": cell,
        "key": cell_key(cell),
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
    return TimingRecord(**{**arguments, **fields})


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
    return make_timing("time", cell_of(label), measured, **fields)


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
    return make_timing("ceiling", cell_of(None), measured, **fields)


def weighed(label: str, measured: int, predicted: int, **fields: Any) -> TimingRecord:
    def parts(peak: int) -> dict[str, int]:
        return {
            "parameters": 10,
            "gradients": 10,
            "optimizer": 20,
            "activations": peak - 40,
            "peak": peak,
        }

    found = {"measured": parts(measured), "predicted": parts(predicted)}
    return make_timing("training_memory", cell_of(label), found, **fields)


def rows_of(*timings: TimingRecord) -> dict[tuple[str, str], CaseRow]:
    return {(row.label, row.case): row for row in TimingTable(timings).cases}
