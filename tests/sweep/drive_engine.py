"""`drive_engine.py FOLDER LABEL ...`: runs fake jobs as `modbench run` runs real ones, to be killed."""

import sys
from pathlib import Path

from rich.console import Console

from modbench.data.config import DataConfig
from modbench.model.config import ModelConfig
from modbench.records.finished import finished
from modbench.records.run import RouterCode, Run
from modbench.sweep import process
from modbench.sweep.job import RunJob, folder_of
from modbench.sweep.local import Local
from modbench.sweep.loop import Failure, Loop
from modbench.sweep.progress import Progress
from modbench.sweep.wanted import Left, Wanted, left_of
from modbench.train.config import TrainConfig
from modbench.train.schedule import Schedule

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
DATA = {"sha256": "0", "train_tokens": 1, "heldout_tokens": 1}


def fake_run(label: str) -> Wanted:
    run = Run(
        router=RouterCode(name="vanilla", options={"label": label}),
        model=ModelConfig(),
        data=DataConfig(),
        train=TrainConfig(),
        schedule=Schedule(budgets=(1,)),
        seed=0,
    )
    return Wanted(label=label, run=run)


def key_of(label: str) -> str:
    return fake_run(label).run.key


def fake_job(item: Left, folder: Path, threads: int = 1, timeout: float = 1800.0) -> RunJob:
    run = item.wanted.run
    return RunJob(
        suite=folder.name,
        label=item.wanted.label,
        title=item.wanted.label,
        folder=folder_of(folder, run.key),
        results=folder,
        threads=threads,
        timeout=timeout,
        run=run,
        train=item.train,
        measurements=item.measurements,
        data=DATA,
    )


def fakes_left(folder: Path, labels: list[str]) -> list[Left]:
    """Work left for the runs called ``labels``; those called measured are measured, too."""
    wanted = [fake_run(label) for label in labels]
    measured = [one for one in wanted if one.label.startswith("measured")]
    others = [one for one in wanted if one not in measured]
    records = finished(folder)
    heldout = [("heldout", {"heldout_tokens": 1})]
    return [
        *left_of(others, [], records, audit=False),
        *left_of(measured, heldout, records, audit=False),
    ]


def run_fakes(
    folder: Path, labels: list[str], console: Console, *, threads: int = 1, timeout: float = 1800.0
) -> list[Failure]:
    """Run what is left of the runs called ``labels``; return the failures."""
    progress = Progress(console)
    left = fakes_left(folder, labels)
    progress.begin(folder.name, total=len(labels), done=len(labels) - len(left), unit="run")
    jobs = [fake_job(item, folder, threads, timeout) for item in left]
    return Loop(folder, Local(), progress).run(jobs)


def drive(folder: Path, labels: list[str]) -> int:
    process.COMMAND = FAKE
    try:
        run_fakes(folder, labels, Console(stderr=True))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(drive(Path(sys.argv[1]), sys.argv[2:]))
