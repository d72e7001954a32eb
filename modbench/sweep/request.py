"""Requests of commands: a suite, values in place of those of its file, and options of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

EngineName = Literal["local", "inline", "slurm", "ray"]


@dataclass(frozen=True, kw_only=True)
class SuiteRequest:
    """A suite as a command asks for it."""

    name: str  #: of a shipped suite, or path of a TOML file
    results: Path  #: folder that holds a folder per suite
    #: in place of those of the file; see `modbench.sweep.suite.load_suite`
    settings: Mapping[str, Any] = field(default_factory=dict)
    plugins: Sequence[Path] = ()  #: files that register routers
    like: str | None = None  #: label of the row that an added one is like; None: one of its kind
    only: Sequence[str] = ()  #: labels of rows, or names of runs; empty: all


@dataclass(frozen=True, kw_only=True)
class RunRequest(SuiteRequest):
    """The request of `modbench run`."""

    workers: int = 0  #: runs at the same time; 0: one per core or GPU
    measure: Sequence[str] = ()  #: tasks to score trained runs on, and nothing is trained
    retry: bool = False  #: try again what ran out of memory
    engine: EngineName = "local"
    #: what each job asks of Slurm or Ray, by option
    resources: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False  #: print the script of Slurm and run nothing
    rehearse: bool = False  #: see `modbench.sweep.rehearse`


@dataclass(frozen=True, kw_only=True)
class TimeRequest(SuiteRequest):
    """The request of `modbench time`."""

    repetitions: int | None = None  #: processes per scheme; None: the suite's
    again: bool = False  #: begin a new session even if the last one is complete
