"""Times and memory of rows, from the measurements of `modbench time` and `modbench run`."""

from collections.abc import Callable, Mapping

from modbench.records.result import Result
from modbench.report.leaderboard.row import Value
from modbench.report.timing.table import TimingTable

#: The metric of each timed case.
_METRICS = {"forward": "forward_seconds", "train": "train_step_seconds"}


def timed_values(table: TimingTable | None) -> Callable[[Result], Mapping[str, Value]]:
    """The timed metrics of a result: those of its scheme at its shape and batch, in ``table``."""
    by_key: dict[str, dict[str, Value]] = {}
    for row in table.cases if table else ():
        if row.phase in _METRICS and row.seconds_median is not None:
            by_key.setdefault(row.key, {})[_METRICS[row.phase]] = Value(
                center=row.seconds_median,
                iqr=row.seconds_iqr,
                n=row.n,
                stable=row.stable,
                loaded=row.loaded,
                throttled=row.throttled,
            )
    for memory in table.memory if table else ():
        if memory["phase"] == "training" and memory["peak"] is not None:
            peak = Value(center=memory["peak"], n=1)
            by_key.setdefault(memory["key"], {})["peak_memory_bytes"] = peak
    return lambda result: by_key.get(result.run.timed.key, {})
