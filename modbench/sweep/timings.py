"""`modbench time`: wall time and memory of every scheme of a suite, untrained."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import modbench
from modbench.errors import UserError
from modbench.records.line import canonical_json, sha256
from modbench.records.record import DONE, cell_key
from modbench.records.store import finished, read_suite
from modbench.report.timing.values import machine_in_words, settings_of
from modbench.routing.registry import code_sha256
from modbench.sweep.cells import Cell, chosen, expand_planned
from modbench.sweep.engine import Job, identity_of
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.run import Tell, run_left
from modbench.sweep.suite import load_suite
from modbench.sweep.worker import DiedError, run_worker

#: Fields of [train] that a timing depends on.
_TRAIN = ("sequence", "batch", "precision")


def time_suite(
    name: str,
    *,
    results: Path,
    plugins: Sequence[Path] = (),
    only: Sequence[str] = (),
    repetitions: int | None = None,
    again: bool = False,
) -> int:
    """Finish the last run of this machine, code and schemes, or begin a new one (always if ``again``);
    then write the report into ``results``/<suite>. Returns the exit code of `run_left`. Raises
    UserError: an error in the suite, the plugins of all rows or the folder, before anything has run."""
    suite = load_suite(name)
    if repetitions is not None:
        suite = replace(suite, time=replace(suite.time, repetitions=repetitions))
    rows = resolve(suite, plugins)
    cells, folder = timing_cells(rows, only), results / suite.header.name

    begun: list[tuple[str, dict[str, Any]]] = []  # by the first call; later ones continue its run

    def left(tell: Tell) -> tuple[list[Job], int]:
        if not begun:
            machine = _machine(rows, cells[0])
            begun.append((_run(cells, folder, machine, again, tell), machine))
        run, machine = begun[0]
        jobs = timing_jobs(cells, rows, folder, run, machine)
        done = {identity_of(line) for line in finished(folder) if line.status in DONE}
        return [job for job in jobs if job.identity not in done], len(jobs)

    return run_left(rows, results, left, of="process", page="timings", workers=1)


def timing_cells(rows: Rows, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of ``rows`` to be timed, without budgets and seeds; all rows, or those in ``only``. With
    isoFLOP grids: every shape of every budget. Raises UserError: as `modbench.sweep.cells.expand` and
    `chosen`."""
    cells: dict[str, Cell] = {}
    for cell in chosen(expand_planned(rows), only, rows.mistakes):
        train = {name: cell["train"][name] for name in _TRAIN}
        time = rows.suite.time.resolved(train["sequence"]).of_a_process()
        timed = {"router": cell["router"], "model": cell["model"], "train": train, "time": time}
        cells[cell_key(timed)] = timed
    return list(cells.values())


def timing_jobs(
    cells: Sequence[Cell], rows: Rows, folder: Path, run: str, machine: dict[str, Any]
) -> list[Job]:
    """All processes of ``run`` in their order: repetition by repetition, so that a drift of the machine
    affects all schemes alike; each repetition begins with another scheme; memory comes last.
    ``machine``: for records of crashed processes."""
    from modbench.sweep.timing_job import timing_record

    machines = {cell_key(cell): cell for cell in ({**cell, "router": None} for cell in cells)}
    entries = [("ceiling", cell) for cell in machines.values()] + [("time", cell) for cell in cells]
    processes = []
    for number in range(rows.suite.time.repetitions):
        turn = number % len(entries)
        processes += [(*entry, number + 1) for entry in entries[turn:] + entries[:turn]]
    for cell in cells:
        processes += [(f"{phase}_memory", cell, 1) for phase in ("training", "inference")]
    header, jobs = rows.suite.header, []
    for measurement, cell, repetition in processes:
        key, router = cell_key(cell), cell["router"]
        spec = {
            "job": "timing",
            "measurement": measurement,
            "run": run,
            "suite": {"name": header.name, "version": header.version},
            "cell": cell,
            "repetition": repetition,
            "plugins": rows.plugins_of(cell),
            "results": str(folder.resolve()),
            "threads": _threads(rows),
        }
        words = [router["label"] if router else "machine", measurement.replace("_", " ")]
        jobs.append(
            Job(
                identity=("timing", key, run, measurement, repetition),
                title=f"{', '.join(words)} {repetition}",
                spec=spec,
                log=folder / "cells" / key / "timing.txt",
                crash_record=partial(timing_record, spec, machine),
            )
        )
    return jobs


def _threads(rows: Rows) -> int:
    from modbench.timing.system_load import thread_count

    return rows.suite.time.threads or thread_count()


def _machine(rows: Rows, cell: Cell) -> dict[str, Any]:
    """The environment of a measuring process; this one does not use the GPU."""
    ceiling = {"job": "machine", "cell": {**cell, "router": None}, "plugins": []}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = run_worker(ceiling | {"threads": _threads(rows)}, log=Path(folder, "log.txt"))
        except DiedError as death:
            raise UserError(f"nothing can be measured: {death}; repair the installation") from None
    return dict(found["environment"])


def _run(cells: Sequence[Cell], folder: Path, machine: dict[str, Any], again: bool, tell: Tell) -> str:
    """The run to continue, or a new one: a hash of the machine, its settings and the code, and a number.
    Samples of two versions of a scheme are not pooled: one that was edited begins a new run."""
    code = code_sha256(Path(modbench.__file__))
    made = sha256(canonical_json([machine_in_words(machine), settings_of(machine, "time"), code]))[:12]
    timings = read_suite(folder).timings
    mine = [timing for timing in timings if timing.run.startswith(made)]
    keys = {cell["router"]["label"]: cell_key(cell) for cell in cells}
    routed = [timing for timing in mine if timing.run == mine[-1].run and timing.cell["router"]]
    same = all(keys.get(one.cell["router"]["label"], one.key) == one.key for one in routed)
    if mine and same and not again:
        return mine[-1].run
    run = f"{made}-{len({timing.run for timing in mine}) + 1}"
    if timings and not again:
        what = "of another machine, other settings, options, shapes or code"
        tell(f"run {timings[-1].run} is {what}; beginning run {run}")
    return run
