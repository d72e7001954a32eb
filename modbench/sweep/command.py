"""Parts of `modbench run` and `modbench time`: run jobs with progress, and end with the report."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from modbench.errors import several
from modbench.shipped import committed_results
from modbench.sweep.engine import Devices, Engine, Failure
from modbench.sweep.job import Job
from modbench.sweep.launch.launcher import Launcher
from modbench.sweep.launch.watch import Watched
from modbench.sweep.progress import show_page, show_progress
from modbench.sweep.rows import Rows

Tell = Callable[[str], None]


def run_jobs_of(
    rows: Rows,
    folder: Path,
    jobs: Sequence[Job],
    total: int,
    unit: str,
    workers: int,
    err: Console,
    devices: Devices | None = None,
    launcher: Launcher | None = None,
) -> list[Failure]:
    """Run ``jobs``, ``workers`` at a time, of ``total`` with those that were done before; show progress
    on ``err``; each on one of ``devices``, if there are any; or on ``launcher``. Returns the failures.
    Raises KeyboardInterrupt: a signal stopped the command."""
    with show_progress(err) as progress:
        progress.begin(rows.suite.header.name, total=total, done=total - len(jobs), unit=unit)
        timeout = rows.suite.axes.cell_timeout
        if launcher:
            watched = Watched(folder=folder, launcher=launcher, progress=progress, timeout=timeout)
            return watched.run(jobs)
        engine = Engine(
            folder=folder,
            progress=progress,
            workers=workers,
            timeout=timeout,
            devices=devices or Devices(),
        )
        return engine.run(jobs)


def end_of_command(rows: Rows, folder: Path, failures: Sequence[Failure], page: str, tell: Tell) -> int:
    """Write the report, show its ``page`` and name the ``failures``. Returns the exit code: 0, 1 if a
    job failed, 2 if that or a row left out is a plugin's mistake. Divergence and lack of memory are
    results, not failures."""
    # Loads matplotlib and scipy.
    from modbench.report.committed import next_to_committed
    from modbench.report.page import write_report

    report = write_report(folder, say=tell)
    if page in report.pages:
        show_page(report.pages[page])
    if page == "leaderboard.md" and (committed := committed_results(folder.name)):
        show_page(next_to_committed(folder, committed))
    for path in report.paths:
        print(path)
    for failure in failures:
        tell(f"{failure.title} {failure.status}: {failure.error}; its log: {failure.log}")
    failed = [failure for failure in failures if failure.status == "failed"]
    if failed:
        tell(f"{several(len(failed), 'job')} failed; run the same command again to retry")
    return 2 if rows.mistakes or any(failure.refused for failure in failed) else 1 if failed else 0
