"""The engines of `modbench run`, by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from modbench.errors import UserError
from modbench.sweep.launch.launcher import Launcher
from modbench.sweep.launch.ray import Ray
from modbench.sweep.launch.slurm import Slurm

EngineName = Literal["local", "slurm", "ray"]


def launcher_of(
    engine: EngineName, request: Mapping[str, str], folder: Path, workers: int
) -> Launcher | None:
    """The launcher of ``engine`` for jobs in ``folder`` (results/<suite>); None: this machine.
    ``workers``: most jobs at a time; 0 for no limit. ``request``: what each job asks the engine for.
    Raises UserError: the engine has no such request."""
    if engine == "slurm":
        return Slurm(folder, request, workers)
    if engine == "ray":
        return Ray(request, workers)
    if request:
        raise UserError(
            f"--request {' '.join(request)} is for --engine slurm or ray; --engine local has --workers"
        )
    return None
