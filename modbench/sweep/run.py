"""`modbench run`: a suite file to records, table and plots."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from modbench import kernels
from modbench.errors import UserError, several
from modbench.records.store import Finished, finished, remove_leftovers
from modbench.report.page import write_report
from modbench.sweep.cells import (
    Cell,
    by_key,
    cell_jobs,
    cells_left,
    chosen,
    expand,
    losses_of,
    scheme_of,
)
from modbench.sweep.changed import check_unchanged
from modbench.sweep.engine import Engine, Failure, Job
from modbench.sweep.lock import suite_lock, wait_for_orphans
from modbench.sweep.passes import refuse_more_passes
from modbench.sweep.progress import say, show_leaderboard, show_progress
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.suite import Suite, load_suite
from modbench.sweep.track import check_trackers

Tell = Callable[[str], None]


def run_suite(
    name: str,
    *,
    results: Path,
    plugins: Sequence[Path] = (),
    workers: int = 0,
    only: Sequence[str] = (),
) -> int:
    """Run the cells of suite ``name`` that are left, and write its report into ``results``/<suite>.
    Returns the exit code of `run_left`. Raises UserError: an error in the suite, the data or the folder,
    or in the plugins of all rows, before anything has run."""
    if workers < 0:
        raise UserError(f"--workers is {workers}; it must be 1 or more, or 0 for one per core")
    kernels.mode()  # a wrong name is refused before anything runs
    suite = load_suite(name)
    check_trackers(suite.track)
    rows = resolve(suite, plugins)
    first = expand(rows)
    chosen(first, only, rows.mistakes)  # a wrong label is refused before anything runs

    def known(records: Sequence[Finished]) -> list[Cell]:
        return first if suite.isoflop is None else expand(rows, losses_of(records))

    left = partial(_jobs_left, rows, known, only, results / suite.header.name)
    return run_left(rows, results, left, of="cell", page="leaderboard", workers=workers)


def run_left(
    rows: Rows,
    results: Path,
    left: Callable[[Tell], tuple[list[Job], int]],
    *,
    of: str,
    page: str,
    workers: int,
) -> int:
    """Run the jobs that ``left`` returns with the number of all jobs; write the report, and show its
    ``page``. ``of``: the name of one job. ``workers``: as many at a time; 0: see `parallel`.

    Returns the exit code: 0, 1 if a job failed, 2 if that or a row left out is a plugin's mistake.
    Divergence and lack of memory are results, not failures.

    Raises:
        UserError: the folder can't be written, or a record line is corrupt.
        KeyboardInterrupt: a signal stopped the run.
    """
    err, name = Console(stderr=True), rows.suite.header.name
    folder, tell = results / name, partial(say, err)
    failures: list[Failure] = []
    for mistake in rows.mistakes:
        tell(f"{mistake}; the other rows are run")
    with suite_lock(folder):
        remove_leftovers(folder)
        jobs, total = left(tell)
        if not jobs:
            tell(f"{name}: {total} of {several(total, of)} done; writing the report")
        tried = set()
        while jobs:
            with show_progress(err) as progress:
                progress.begin(name, total=total, done=total - len(jobs), unit=of)
                failures += Engine(
                    folder=folder,
                    progress=progress,
                    workers=workers or parallel()[0],
                    timeout=rows.suite.axes.cell_timeout,
                ).run(jobs)
            if rows.suite.isoflop is None:
                break
            tried |= {job.identity for job in jobs}
            jobs, total = left(tell)  # the losses tell the learning rates of the next cells
            jobs = [job for job in jobs if job.identity not in tried]
        written = write_report(folder, say=tell)
    show_leaderboard((folder / f"{page}.md").read_text(encoding="utf-8"))
    for path in written:
        print(path)
    for one in failures:
        tell(f"{one.title} {one.status}: {one.error}; its log: {one.log}")
    failed = [one for one in failures if one.status == "failed"]
    if failed:
        tell(f"{len(failed)} of {several(total, of)} failed; run the same command again to retry")
    return 2 if rows.mistakes or any(one.refused for one in failed) else 1 if failed else 0


def _jobs_left(
    rows: Rows,
    known: Callable[[Sequence[Finished]], list[Cell]],
    only: Sequence[str],
    folder: Path,
    tell: Tell,
) -> tuple[list[Job], int]:
    """Prepare the data once for all cells; return the jobs that are left of the cells with the labels
    ``only``. ``known``: the suite's cells that are known, given its records."""
    # An orphan may finish its cell while it is waited for: records are read afterwards.
    wait_for_orphans(sorted((folder / "cells").glob("*")), tell)
    suite, records = rows.suite, finished(folder)
    every = by_key(known(records))
    check_unchanged(rows, every, records, folder, tell)
    cells = by_key(chosen(list(every.values()), only, rows.mistakes)) if only else every
    left = cells_left(cells, records)
    embedded = suite.data.source == "pypi-en-v1"  # pinned; other text may have changed since
    if left or not embedded:
        from modbench.data.token_data import prepare

        data = prepare(suite.data, say=tell).summary()
        _refuse_other_text(cells, records, folder, data["sha256"])
    if not left:
        return [], len(cells)
    refuse_more_passes(rows, {scheme_of(cell) for cell in left.values()}, data["train_tokens"])
    if "downstream" in suite.measure.steps:
        _check_tasks(suite, embedded, tell)
    return cell_jobs(left, cells, rows, folder, data, parallel()[1]), len(cells)


def _check_tasks(suite: Suite, embedded: bool, tell: Tell) -> None:
    """Check the downstream tasks and their data, before anything is trained; tell which groups are
    partial. Raises UserError: a group and its member are named, the held-out text is too short for a
    task of ours, or a file of another is missing or has a line that is no item."""
    measure = suite.measure
    if len(measure.downstream) > 1:  # lm-eval takes seconds to import
        from modbench.evaluate.downstream.task_files import files_by_name

        try:
            files_by_name(measure.downstream, include=measure.include, data_dir=measure.data_dir)
        except UserError as error:
            raise UserError(f"suite {suite.source}: [measure] downstream: {error}") from error
    if not embedded:
        from modbench.evaluate.tasks.build import check_text

        check_text(measure.downstream, suite.data)
    where = f"suite {suite.source}: [measure] downstream_data"
    if measure.data_dir is not None and not measure.data_dir.is_dir():
        raise UserError(
            f"{where} {measure.data_dir} is no folder; give one with files such as arc_easy.jsonl"
        )
    if measure.data_dir is not None or measure.include is not None:
        from modbench.evaluate.downstream.check_files import check_files

        try:
            for sentence in check_files(
                measure.downstream,
                data_dir=measure.data_dir,
                include=measure.include,
                fewshot=measure.downstream_fewshot,
            ):
                tell(sentence)
        except UserError as error:
            raise UserError(f"suite {suite.source}: [measure] downstream: {error}") from error


def parallel() -> tuple[int, int]:
    """Default number of concurrent cells, and the threads of each. On CPUs every cell has one thread, so
    that its bits do not depend on the number of cells; on a GPU one cell runs at a time."""
    import torch

    from modbench.timing.system_load import thread_count

    cores = thread_count()
    return (1, cores) if torch.cuda.is_available() else (cores, 1)


def _refuse_other_text(
    cells: Mapping[str, Cell], records: Sequence[Finished], folder: Path, sha256: str
) -> None:
    for record in records:
        if record.kind == "cell" and record.key in cells and record.text != sha256:
            raise UserError(
                f"{folder} holds records of this suite made from other text (sha256 "
                f"{str(record.text)[:12]}) than it is now ({sha256[:12]}); restore that "
                "text, or give --results another folder"
            )
