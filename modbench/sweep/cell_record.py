"""The record of a cell."""

from datetime import UTC, datetime
from typing import Any

from modbench.report.record import CellRecord, Status, cell_key


def cell_record(
    cell: dict[str, Any],
    *,
    suite: dict[str, Any],
    data: dict[str, Any],
    environment: dict[str, Any],
    status: Status,
    error: str | None,
    started: datetime,
    audit_key: str | None = None,
    audit: list[dict[str, Any]] | None = None,
    flops_source: str | None = None,
    metrics: dict[str, Any] | None = None,
    curve: list[dict[str, Any]] | None = None,
    routing: dict[str, Any] | None = None,
) -> CellRecord:
    """The record of ``cell``, which finishes now. A cell that crashed has no measurements."""
    from modbench.measure.environment import code_version

    return CellRecord(
        suite=suite,
        cell=cell,
        key=cell_key(cell),
        code=code_version(),
        environment=environment,
        data=data,
        audit_key=audit_key,
        audit=audit or [],
        flops_source=flops_source,
        metrics=metrics or {},
        curve=curve or [],
        routing=routing or {},
        status=status,
        error=error,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
