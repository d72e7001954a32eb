"""`drive_engine.py FOLDER LABEL ...`: runs fake cells as `modbench run` runs real ones, to be killed."""

import sys
from pathlib import Path

from rich.console import Console

from modbench.sweep.engine import Engine, InterruptedRunError
from modbench.sweep.lock import suite_lock
from modbench.sweep.progress import Progress


def fake_command(spec: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("fake_cell.py")), str(spec)]


def fake_cell(label: str) -> dict:
    router = {"name": "vanilla", "options": {}, "plugin_sha256": None, "label": label}
    empty: dict = {"model": {}, "data": {}, "measure": {}}
    return {"router": router, "train": {"budget": 1}, "seed": 0, **empty}


def fake_engine(folder: Path, **settings: object) -> Engine:
    data = {"sha256": "0", "train_tokens": 1, "heldout_tokens": 1}
    suite = {"name": folder.name, "version": 1, "rank_by": "heldout_loss"}
    return Engine(
        **{"folder": folder, "suite": suite, "data": data, "command": fake_command, **settings}
    )


def drive(folder: Path, labels: list[str]) -> int:
    try:
        with suite_lock(folder):
            fake_engine(folder).run(
                [fake_cell(label) for label in labels], Progress(Console(stderr=True))
            )
    except InterruptedRunError:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(drive(Path(sys.argv[1]), sys.argv[2:]))
