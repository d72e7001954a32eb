"""`drive_engine.py FOLDER LABEL ...`: runs fake cells as `modbench run` runs real ones, to be killed."""

import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from modbench.records.record import cell_key
from modbench.records.store import finished
from modbench.sweep import worker
from modbench.sweep.cell import cell_record
from modbench.sweep.cells import by_key, cells_left
from modbench.sweep.engine import Engine, Failure, Job
from modbench.sweep.lock import suite_lock, wait_for_orphans
from modbench.sweep.progress import Progress

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
DATA = {"sha256": "0", "train_tokens": 1, "heldout_tokens": 1}


def fake_cell(label: str) -> dict:
    router = {"name": "vanilla", "options": {}, "plugin_sha256": None, "label": label}
    empty: dict = {"model": {}, "data": {}, "measure": {}}
    return {"router": router, "train": {"budget": 1}, "seed": 0, **empty}


def fake_job(label: str, folder: Path, threads: int) -> Job:
    cell = fake_cell(label)
    key = cell_key(cell)
    suite = {"name": folder.name, "version": 1, "rank_by": "heldout_loss"}
    spec = {
        "job": "cell",
        "suite": suite,
        "cell": cell,
        "plugins": [],
        "results": str(folder),
        "folder": str(folder / "cells" / key),
        "threads": threads,
    }

    machine = {"cpu": None, "gpu": None, "threads": threads, "torch": "0"}
    return Job(
        identity=("cell", key, None, None, None),
        title=label,
        spec=spec,
        log=folder / "cells" / key / "log.txt",
        crash_record=partial(cell_record, cell, suite, DATA, machine),
    )


def run_fakes(
    folder: Path, labels: list[str], console: Console, *, threads: int = 1, **settings: object
) -> list[Failure]:
    """Run the cells called ``labels`` that are left; return the failures."""
    progress = Progress(console)
    cells = [fake_cell(label) for label in labels]
    with suite_lock(folder):
        wait_for_orphans([folder / "cells" / cell_key(cell) for cell in cells], progress.note)
        todo = cells_left(by_key(cells), finished(folder))
        left = [cell["router"]["label"] for cell in todo.values()]
        progress.begin(folder.name, total=len(cells), done=len(cells) - len(left), unit="cell")
        engine = Engine(**{"folder": folder, "progress": progress, **settings})
        return engine.run([fake_job(label, folder, threads) for label in left])


def drive(folder: Path, labels: list[str]) -> int:
    worker.COMMAND = FAKE
    try:
        run_fakes(folder, labels, Console(stderr=True))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(drive(Path(sys.argv[1]), sys.argv[2:]))
