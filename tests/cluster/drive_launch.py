"""`drive_launch.py ENGINE FOLDER LABEL ...`: hands fake jobs to an engine, as `modbench run` does with
real ones, and watches them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sweep"))

from drive_engine import FAKE, fake_job, fakes_left
from rich.console import Console

from modbench.sweep import ray, slurm
from modbench.sweep.loop import Loop
from modbench.sweep.progress import Progress

RUN_IN_RAY = ray.run_in_ray


def run_fake(folder: str) -> None:
    from modbench.sweep import process

    process.COMMAND = FAKE
    RUN_IN_RAY(folder)


def drive(engine: str, folder: Path, labels: list[str]) -> int:
    driver = Path(__file__).parents[1] / "sweep" / "drive_task.py"
    slurm.TASK = (sys.executable, str(driver))
    ray.run_in_ray = run_fake
    progress = Progress(Console(stderr=True, width=200))
    left = fakes_left(folder, labels)
    progress.begin(folder.name, total=len(labels), done=len(labels) - len(left))
    executor = slurm.Slurm(folder, {}, 0) if engine == "slurm" else ray.Ray({}, 0)
    executor.check()
    jobs = [fake_job(item, folder, timeout=300.0) for item in left]
    try:
        return len(Loop(folder, executor, progress).run(jobs))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(drive(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
