"""Steps that the commands `run` and `time` share: the record of what a suite wants, jobs with progress,
and the report at the end."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from modbench.errors import several
from modbench.records.finished import Finished
from modbench.records.line import key_of
from modbench.records.record import SuiteRecord, rank_of
from modbench.records.store import append_record
from modbench.sweep.executor import Executor, Tell
from modbench.sweep.isoflop import stated as stated_isoflop
from modbench.sweep.job import Job, made_by
from modbench.sweep.loop import Failure, Loop
from modbench.sweep.progress import show_page, show_progress
from modbench.sweep.rows import Rows
from modbench.sweep.tables import stated_comparisons
from modbench.sweep.wanted import Wanted


def store_suite(
    rows: Rows,
    wanted: Sequence[Wanted],
    planned: Sequence[Wanted],
    measures: Sequence[tuple[str, dict[str, Any]]],
    folder: Path,
    records: Sequence[Finished],
) -> None:
    """Record what the suite wants, unless the newest of ``records`` of a suite states the same."""
    suite = suite_of(rows, wanted, planned, measures)
    stored = [record for record in records if record.kind == "suite"]
    newest = max(stored, key=rank_of, default=None)
    if newest is None or newest.key != key_of(suite):
        import torch

        from modbench.measure.environment import environment

        now = datetime.now(UTC)
        made = made_by(environment(torch.float32), now)
        made |= {name: now.isoformat(timespec="microseconds") for name in ("started", "finished")}
        number = 1 + max((record.number or 0 for record in stored), default=0)
        append_record(folder, SuiteRecord.made(suite=suite, key=key_of(suite), number=number, **made))


def suite_of(
    rows: Rows,
    wanted: Sequence[Wanted],
    planned: Sequence[Wanted],
    measures: Sequence[tuple[str, dict[str, Any]]],
) -> dict[str, Any]:
    """Return what the suite wants, as its record states it. ``planned``: see
    `modbench.sweep.wanted.expand_planned`; its shapes are timed before all runs are known."""
    header = rows.suite.header
    suite = rows.suite
    schemes = [s for s in suite.schemes if s.name in rows.resolved] if suite.isoflop else []
    plans = {scheme.name: stated_isoflop(rows, scheme) for scheme in schemes}
    stated = dict[str, dict[str, Any]]()
    for item in [*planned, *wanted]:
        row = stated.setdefault(item.label, {"label": item.label, "runs": [], "timed": []})
        if item.name in plans:
            row["isoflop"] = plans[item.name]
        if (key := item.run.timed.key) not in row["timed"]:
            row["timed"].append(key)
    for item in wanted:
        if (key := item.run.key) not in stated[item.label]["runs"]:
            stated[item.label]["runs"].append(key)
    settings: dict[str, Any] = {kind: of for kind, of in measures if kind != "downstream"}
    tasks = [of for kind, of in measures if kind == "downstream"]
    compared = stated_comparisons(rows.suite.comparisons, rows.suite.axes.budgets)
    return {
        "name": header.name,
        "version": header.version,
        "rows": list(stated.values()),
        "wanted": settings | ({"downstream": tasks} if tasks else {}),
    } | ({"compare": compared} if compared else {})


def run_all(
    rows: Rows,
    folder: Path,
    jobs: Sequence[Job],
    total: int,
    unit: str,
    executor: Executor,
    err: Console,
) -> list[Failure]:
    """Run ``jobs`` on ``executor``, of ``total`` with those that were done before; show progress on
    ``err``. Returns the failures. Raises KeyboardInterrupt: a signal stopped the command."""
    with show_progress(err, live=not executor.inline) as progress:
        progress.begin(rows.suite.header.name, total=total, done=total - len(jobs), unit=unit)
        return Loop(folder, executor, progress).run(jobs)


def end_of_command(rows: Rows, folder: Path, failures: Sequence[Failure], page: str, tell: Tell) -> int:
    """Write the report, show its ``page`` and name the ``failures``. Returns the exit code: 0, 1 if a
    job failed, 2 if that or a row left out is a plugin's mistake. Divergence and lack of memory are
    results, not failures."""
    # Loads matplotlib and scipy.
    from modbench.report.write import write_report

    report = write_report(folder, say=tell)
    if page in report.pages:
        show_page(report.pages[page])
    for path in report.paths:
        print(path)
    for failure in failures:
        tell(f"{failure.title} {failure.status}: {failure.error}; its log: {failure.log}")
    failed = [failure for failure in failures if failure.status == "failed"]
    if failed:
        tell(f"{several(len(failed), 'job')} failed; run the same command again to retry")
    return 2 if rows.mistakes or any(failure.refused for failure in failed) else 1 if failed else 0
