"""The record of a cell."""

from datetime import UTC, datetime
from typing import Any

from modbench.measure.environment import code_version
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
    **found: Any,
) -> CellRecord:
    """The record of ``cell``, which finishes now. A cell that crashed has ``found`` nothing."""
    nothing: dict[str, Any] = {"audit": [], "metrics": {}, "curve": [], "routing": {}}
    return CellRecord(
        suite=suite,
        cell=cell,
        key=cell_key(cell),
        code=code_version(),
        environment=environment,
        data=data,
        status=status,
        error=error,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        **nothing | found,
    )
