"""The records of jobs: of runs, of measurements, and of jobs whose worker ended before it made one."""

from datetime import UTC, datetime
from typing import Any

import torch

from modbench.measure.environment import code_version, environment
from modbench.records.line import key_of
from modbench.records.record import AnyRecord, MeasurementRecord, RunRecord
from modbench.records.run import Run
from modbench.sweep.job import Identity


def crash_record(
    spec: dict[str, Any], identity: Identity, status: Any, error: str, started: datetime
) -> AnyRecord:
    """The record ``identity`` of the job ``spec``, which ended before it made it."""
    if spec["job"] == "timing":
        from modbench.sweep.timing_job import timing_record

        return timing_record(spec, spec["machine"], status, error, started)
    machine = environment(torch.float32)
    # The other entries describe this process, not the one that crashed.
    known = {name: machine[name] for name in ("cpu", "gpu", "torch")} | {"threads": spec["threads"]}
    made: dict[str, Any] = {"machine": known, "status": status, "error": error, "started": started}
    made["workers"] = spec["workers"]
    if identity[0] == "run":
        return run_record(Run.of(spec["run"]), spec["data"], **made)
    subject = next(s for s in spec["measurements"] if key_of(s) == identity[1])
    return measurement_record(subject, {}, **made)


def run_record(
    run: Run,
    data: dict[str, Any],
    machine: dict[str, Any],
    status: Any,
    error: str | None,
    started: datetime,
    **fields: Any,
) -> RunRecord:
    """The record of ``run``, which ends now. ``fields``: its other fields; none for a crash."""
    nothing: dict[str, Any] = {"metrics": {}, "ends": [], "curve": []}
    return RunRecord(
        run=run.as_json(),
        key=run.key,
        data=data,
        status=status,
        error=error,
        **made_by(machine, started),
        **nothing | fields,
    )


def measurement_record(
    subject: dict[str, Any],
    result: dict[str, Any],
    machine: dict[str, Any],
    status: Any,
    error: str | None,
    started: datetime,
    **fields: Any,
) -> MeasurementRecord:
    """The record of the measurement ``subject``, which ends now."""
    return MeasurementRecord(
        measurement=subject,
        key=key_of(subject),
        result=result,
        status=status,
        error=error,
        **made_by(machine, started),
        **fields,
    )


def made_by(machine: dict[str, Any], started: datetime) -> dict[str, Any]:
    """The fields of a record that ends now, on ``machine``, with this code."""
    return {
        "code": code_version(),
        "environment": machine,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
