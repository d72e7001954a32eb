"""`drive_launch.py ENGINE FOLDER LABEL ...`: hands fake jobs to an engine, as `modbench run` does with
real ones, and watches them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sweep"))

from drive_engine import FAKE, fake_job, fakes_left
from rich.console import Console

from modbench.sweep.launch import ray, slurm
from modbench.sweep.launch.watch import Watched
from modbench.sweep.progress import Progress
from modbench.sweep.run import launcher_of


def run_fake(folder: str) -> bool:
    from modbench.sweep import task, worker

    worker.COMMAND = FAKE
    return task.run_task(Path(folder))


def drive(engine: str, folder: Path, labels: list[str]) -> int:
    driver = Path(__file__).parents[1] / "sweep" / "drive_task.py"
    slurm.TASK = (sys.executable, str(driver))
    ray.run_in_ray = run_fake
    progress = Progress(Console(stderr=True, width=200))
    left = fakes_left(folder, labels)
    progress.begin(folder.name, total=len(labels), done=len(labels) - len(left))
    launcher = launcher_of(engine, {}, folder, 0)
    launcher.check()
    jobs = [fake_job(item, folder, 1) for item in left]
    for job in jobs:
        job.spec["suite"] = folder.name
    watched = Watched(folder=folder, launcher=launcher, progress=progress, timeout=300.0)
    try:
        return len(watched.run(jobs))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(drive(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
