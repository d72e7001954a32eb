"""The jobs of `modbench run`: the cells that have no record yet."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from modbench.report.record import CellRecord, cell_key
from modbench.report.store import finished
from modbench.sweep.cell_record import cell_record
from modbench.sweep.cells import Cell, title
from modbench.sweep.engine import Job
from modbench.sweep.rows import Rows

#: Statuses of a cell that is done; a failed cell is run again.
DONE = frozenset({"ok", "diverged", "oom"})


def cells_left(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """The cells without a record in ``folder`` (results/<suite>) whose status is done and whose audit is
    stored.

    Raises:
        UserError: a record line is corrupt.
    """
    lines = finished(folder)
    audits = {line.key for line in lines if line.kind == "audit"}
    done = {
        line.key
        for line in lines
        if line.kind == "cell" and line.status in DONE and line.audit_key in (None, *audits)
    }
    return [cell for cell in cells if cell_key(cell) not in done]


def cell_jobs(
    cells: Sequence[Cell], rows: Rows, folder: Path, data: dict[str, Any], threads: int
) -> list[Job]:
    """The jobs of the cells that are left. ``data``: for records of crashed cells."""
    suite = rows.suite
    header = suite.header
    named = {"name": header.name, "version": header.version, "rank_by": header.rank_by}
    jobs = []
    for cell in cells_left(cells, folder):
        key = cell_key(cell)
        cell_folder = folder.resolve() / "cells" / key
        spec = {
            "job": "cell",
            "suite": named,
            "cell": cell,
            "track": asdict(suite.track),
            "plugins": rows.plugins_of(cell),
            "results": str(folder.resolve()),
            "folder": str(cell_folder),
            "threads": threads,
        }
        jobs.append(
            Job(
                identity=("cell", key, None, None, None),
                title=title(cell, cells),
                spec=spec,
                log=cell_folder / "log.txt",
                crash_record=partial(_crash_record, cell, named, data, threads),
            )
        )
    return jobs


def _crash_record(
    cell: Cell,
    suite: dict[str, Any],
    data: dict[str, Any],
    threads: int,
    status: Any,
    error: str,
    started: datetime,
) -> CellRecord:
    """The record of a cell whose worker wrote none."""
    import torch

    from modbench.measure.environment import environment

    machine = environment(torch.float32)
    # The other entries describe this process, not the one that crashed.
    known = {name: machine[name] for name in ("cpu", "gpu", "torch")} | {"threads": threads}
    return cell_record(
        cell,
        suite=suite,
        data=data,
        environment=known,
        status=status,
        error=error,
        started=started,
    )
