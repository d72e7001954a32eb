"""A job: what one worker process does, and the records that it makes. It can be kept in a file, so that
another process, on another machine, runs it (`modbench.sweep.task`)."""

import json
import os
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from modbench.records.finished import Finished
from modbench.records.line import key_of
from modbench.records.record import DONE
from modbench.records.run import Run
from modbench.records.store import write_files
from modbench.trained.weights_folder import POINTS, weights_of

#: Kind of record and key; of a timing its session, what it measures and its repetition, too.
Identity = tuple[str, str, str | None, str | None, int | None]
FILE = "job.json"  #: in the job's folder


def identity_of(line: Finished) -> Identity:
    """The identity of the job whose record ``line`` is."""
    return line.kind, line.key, line.session, line.measures, line.repetition


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One worker process: its specification, and the records that it makes."""

    identities: tuple[Identity, ...]  #: of the records, in order; see `identity_of`
    title: str
    spec: dict[str, Any]
    log: Path

    @property
    def key(self) -> str:
        """Names it among the jobs that run."""
        return str(self.identities[0])

    @property
    def claimed(self) -> Path | None:
        """The folder whose claim it needs; None for a timing, which is alone on its machine."""
        return Path(self.spec["folder"]) if "folder" in self.spec else None

    @property
    def ranks(self) -> int:
        """Processes that train its run together, each on a device of its own."""
        train = self.spec.get("run", {}).get("train", {})
        return prod((train.get("parallel") or {}).values())

    def left(self, done: set[Identity]) -> "Job | None":
        """The part of a run's job that is not ``done``; None if there is none. A run whose weights are
        gone is trained again if it is to be measured."""
        run = Run.of(self.spec["run"])
        subjects = [s for s in self.spec["measurements"] if measurement_identity(s) not in done]
        trained = not self.spec["train"] or run_identity(run) in done
        if trained and subjects and not has_weights(Path(self.spec["folder"]), run, subjects):
            trained = False
        if trained and not subjects:
            return None
        spec = self.spec | {"train": not trained, "measurements": subjects}
        return replace(self, spec=spec, identities=identities_of(run, not trained, subjects))


def run_identity(run: Run) -> Identity:
    return "run", run.key, None, None, None


def measurement_identity(subject: dict[str, Any]) -> Identity:
    return "measurement", key_of(subject), None, str(subject["measures"]), None


def identities_of(run: Run, train: bool, subjects: list[dict[str, Any]]) -> tuple[Identity, ...]:
    """The records that a run's job makes, in order."""
    trained = (run_identity(run),) if train else ()
    return (*trained, *map(measurement_identity, subjects))


def has_weights(folder: Path, run: Run, subjects: list[dict[str, Any]]) -> bool:
    """Return True if ``folder`` holds the weights of ``run`` that ``subjects`` measure."""
    budgets = {subject["budget"] for subject in subjects if subject["measures"] != "audit"}
    points = max(subject["settings"].get("checkpoints", 1) for subject in subjects)
    if points > 1 and len([*(folder / POINTS).glob("*.safetensors")]) < points:
        return False
    return all(weights_of(folder, run, budget).is_file() for budget in budgets)


@dataclass(frozen=True, kw_only=True)
class JobFile:
    """A run's job as a file in its folder. ``timeout``: seconds without progress after which its worker
    is ended. ``directory``: the working directory, which paths of texts and plugins are relative to."""

    job: Job
    timeout: float
    directory: str

    def write(self) -> None:
        """Raises UserError: the folder can't be written to."""
        job = self.job
        content = {
            "identities": job.identities,
            "title": job.title,
            "spec": job.spec,
            "log": str(job.log),
            "timeout": self.timeout,
            "directory": self.directory,
        }
        folder = Path(job.spec["folder"])
        os.makedirs(folder, exist_ok=True)
        write_files(folder, {FILE: json.dumps(content).encode()})

    @classmethod
    def read(cls, folder: Path) -> "JobFile":
        """The job of ``folder``."""
        content = json.loads((folder / FILE).read_bytes())
        job = Job(
            identities=tuple(tuple(identity) for identity in content["identities"]),
            title=content["title"],
            spec=content["spec"],
            log=Path(content["log"]),
        )
        return cls(job=job, timeout=content["timeout"], directory=content["directory"])


def done_of(records: list[Finished]) -> set[Identity]:
    """The identities of ``records`` that need not be made again."""
    return {identity_of(record) for record in records if record.status in DONE}
