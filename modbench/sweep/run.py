"""`modbench run`: a suite file to records, table and plots."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from modbench import kernels
from modbench.errors import UserError
from modbench.report.page import write_report
from modbench.report.record import cell_key
from modbench.report.store import read_suite, remove_leftovers
from modbench.sweep.cells import Cell, cell_jobs, cells_left, chosen, expand
from modbench.sweep.engine import Engine, Failure, InterruptedRunError
from modbench.sweep.lock import suite_lock, wait_for_orphans
from modbench.sweep.progress import show_progress
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.suite import Suite, load_suite
from modbench.sweep.terminal import say, show_leaderboard
from modbench.sweep.track import check_trackers
from modbench.sweep.worker import COMMAND


def run_suite(
    name: str,
    *,
    results: Path,
    plugins: Sequence[Path] = (),
    workers: int = 0,
    only: Sequence[str] = (),
    command: Sequence[str] = COMMAND,
) -> int:
    """Run the cells of suite ``name`` that are left, and write its report into ``results``/<suite>.

    Returns the exit code: 0, 1 if a cell failed, 2 if that or a row left out is a plugin's mistake, 130
    if the user stopped the run.

    Raises:
        UserError: an error in the suite, the data or the folder, or in the plugins of all rows, before
            anything has run.
    """
    err = Console(stderr=True)
    if workers < 0:
        raise UserError(f"--workers is {workers}; it must be 1 or more, or 0 for one per core")
    kernels.mode()  # a wrong name is refused before anything runs
    suite = load_suite(name)
    check_trackers(suite.track)
    _refuse_no_scorer(suite)
    rows = resolve(suite, plugins)
    cells = chosen(expand(rows), only, rows.mistakes)
    for mistake in rows.mistakes:
        say(err, f"{mistake}; the other rows are run")
    folder = results / suite.header.name
    try:
        with suite_lock(folder):
            remove_leftovers(folder)
            failures = _run_left(rows, cells, folder, err, workers=workers, command=command)
            written = write_report(folder, say=partial(say, err))
    except InterruptedRunError:
        missing = len(cells_left(cells, folder))
        say(err, f"stopped with {missing} of {len(cells)} cells left; {_AGAIN} resume")
        return 130
    show_leaderboard((folder / "leaderboard.md").read_text(encoding="utf-8"))
    for path in written:
        print(path)
    return max(_tell_failures(failures, cells, err), 2 if rows.mistakes else 0)


def _run_left(
    rows: Rows,
    cells: Sequence[Cell],
    folder: Path,
    console: Console,
    *,
    workers: int,
    command: Sequence[str],
) -> list[Failure]:
    """Prepare the data and run the cells that are left; return the failures.

    Raises:
        InterruptedRunError: the user stopped the run.
    """
    suite = rows.suite
    left = cells_left(cells, folder)
    embedded = suite.data.source == "pypi-en-v1"  # pinned; other text may have changed since
    data = _prepare_data(suite, console) if left or not embedded else None
    if data is not None:
        _refuse_other_data(cells, folder, data)
    if not left or data is None:
        say(console, f"all {len(cells)} cells of {suite.header.name} are done; writing the report")
        return []
    if not embedded:
        _refuse_few_items(suite)
    most, threads = _default_workers()
    with show_progress(console) as progress:
        folders = [folder / "cells" / cell_key(cell) for cell in cells]
        wait_for_orphans(folders, progress.note)
        jobs = cell_jobs(cells, rows, folder, data, threads)
        progress.begin(suite.header.name, total=len(cells), done=len(cells) - len(jobs), unit="cells")
        engine = Engine(
            folder=folder,
            progress=progress,
            workers=min(workers or most, len(cells)),
            timeout=suite.axes.cell_timeout,
            command=command,
        )
        return engine.run(jobs)


_AGAIN = "run the same command again to"


def _tell_failures(failures: Sequence[Failure], cells: Sequence[Cell], console: Console) -> int:
    if not failures:
        return 0
    for failure in failures:
        say(console, f"{failure.title} {failure.status}: {failure.error}; its log: {failure.log}")
    retry = any(failure.status == "failed" for failure in failures)
    again = f"; {_AGAIN} try what failed once more" if retry else ""
    say(console, f"{len(failures)} of {len(cells)} cells failed{again}")
    return 2 if any(failure.refused for failure in failures) else 1


def _default_workers() -> tuple[int, int]:
    """Default number of concurrent cells, and the threads of each. On CPUs every cell has one thread, so
    that its bits do not depend on the number of cells; on a GPU one cell runs at a time."""
    import torch

    from modbench.measure.system_load import thread_count

    cores = thread_count()
    return (1, cores) if torch.cuda.is_available() else (cores, 1)


def _downstream(suite: Suite) -> tuple[str, ...]:
    """The downstream tasks that its cells score."""
    return suite.measure.downstream if "downstream" in suite.measure.steps else ()


def _refuse_no_scorer(suite: Suite) -> None:
    """Refuse downstream tasks without lm-eval before anything is trained."""
    if _downstream(suite) and find_spec("lm_eval") is None:
        raise UserError(
            f"suite {suite.header.name} has downstream tasks, and lm-eval, which scores them, is not "
            "installed; install it, or write `downstream = []` under [measure]"
        )


def _refuse_few_items(suite: Suite) -> None:
    """Refuse a text that is too short for the cloze task before anything is trained."""
    if "modbench_cloze" in _downstream(suite):
        from modbench.measure.tasks.modbench_cloze.items import items

        items(suite.data)


def _refuse_other_data(cells: Sequence[Cell], folder: Path, data: dict[str, Any]) -> None:
    keys = {cell_key(cell) for cell in cells}
    for record in read_suite(folder).cells:
        if record.key in keys and record.data["sha256"] != data["sha256"]:
            raise UserError(
                f"{folder} holds records of this suite made from other text (sha256 "
                f"{record.data['sha256'][:12]}) than it is now ({data['sha256'][:12]}); restore that "
                "text, or give --results another folder"
            )


def _prepare_data(suite: Suite, console: Console) -> dict[str, Any]:
    """Prepare the suite's data once for all cells; return what records state of it."""
    from modbench.data.token_data import prepare

    return prepare(suite.data, say=partial(say, console)).summary()
