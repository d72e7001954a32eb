"""Launchers: hand the jobs of a suite to an engine of several machines."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import modbench
from modbench.errors import UserError
from modbench.sweep.job import Job

#: Command of a task, before its arguments. -P: the working directory holds no modules.
TASK = (sys.executable, "-P", "-m", "modbench.sweep.task")


#: Variables that a node may lack: the folder of prepared texts, and the choice of kernels.
PASSED = ("MODBENCH_CACHE", "MODBENCH_KERNELS")


class Launcher(Protocol):
    """Hands jobs, by the files in their folders, to an engine, whose tasks are `modbench.sweep.task`."""

    threads: int  #: of each job
    trouble: str  #: a sentence on what the engine can't do or tell at present; empty: all is well

    def check(self) -> None:
        """Raises UserError: the engine isn't there, or can't do what was requested."""

    def active(self) -> set[Path]:
        """The folders of the jobs that the engine still has, waiting ones included."""

    def submit(self, jobs: Sequence[Job]) -> str:
        """Hand over ``jobs``; return a sentence on them. Raises UserError: the engine refuses."""

    def log(self, folder: Path) -> Path | None:
        """The engine's own log of the latest task of the job in ``folder``; None: it keeps none."""

    def stopped(self) -> str:
        """A sentence on the jobs that the engine still has, once the command no longer watches."""


def requested(pairs: Iterable[str]) -> dict[str, str]:
    """The settings NAME=VALUE of ``pairs``; NAME alone has an empty value. Raises UserError: one is no
    such pair, or is given twice."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        name = name.removeprefix("--")
        if not name or "\n" in pair:
            raise UserError(
                f"--request {pair}: it must be NAME=VALUE, such as partition=gpu, or NAME alone"
            )
        if name in settings:
            raise UserError(f"--request {name} is given twice; give it once")
        settings[name] = value
    return settings


def whole(request: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """The whole number that ``request`` has under ``name``. Raises UserError: it is none, or is below
    ``least``."""
    try:
        number = int(request.get(name, default))
    except ValueError:
        number = least - 1
    if number < least:
        raise UserError(
            f"--request {name}={request[name]}: a whole number of {least} or more is expected"
        )
    return number


def python_path() -> str:
    """PYTHONPATH of tasks: this modbench, whatever their working directory holds, and what this process
    has."""
    import os

    own = str(Path(modbench.__file__).parent.parent)
    path = [own, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(filter(None, dict.fromkeys(path)))
