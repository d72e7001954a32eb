"""A job: what one worker does, and the records that it stores. It stands in a file in its folder, so
that a worker on any machine reads it. Loads no torch."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from modbench.errors import UserError
from modbench.measure.config import MeasureConfig
from modbench.model.shape import HubConfig
from modbench.records.finished import Finished
from modbench.records.line import key_of
from modbench.records.record import (
    DONE,
    PROTOCOL,
    AnyRecord,
    MeasurementRecord,
    RunRecord,
    TimingKind,
    TimingRecord,
)
from modbench.records.run import Run, Timed
from modbench.records.store import write_files
from modbench.sweep.tables import KeepConfig
from modbench.sweep.track import TrackConfig
from modbench.train.config import ALTER_NOTHING
from modbench.trained.weights_folder import WEIGHTS

#: Kind of record and key; of a timing its session, what it measures and its repetition, too.
Identity = tuple[str, str, str | None, str | None, int | None]
FILE, LOG = "job.json", "log.txt"  #: in the job's folder
Of = TypeVar("Of", bound="Job")


def identity_of(line: Finished) -> Identity:
    """The identity of the record ``line``."""
    return line.kind, line.key, line.session, line.measures, line.repetition


def run_identity(run: Run) -> Identity:
    return "run", run.key, None, None, None


def measurement_identity(subject: Mapping[str, Any]) -> Identity:
    return "measurement", key_of(subject), None, str(subject["measures"]), None


def done_of(records: Sequence[Finished]) -> set[Identity]:
    """The identities of ``records`` that need not be made again."""
    return {identity_of(record) for record in records if record.status in DONE}


def folder_of(suite: Path, key: str) -> Path:
    """The folder of a run of ``suite`` (results/<suite>): its job, checkpoint, weights and log."""
    return suite / "runs" / key


def _stored(run: Run) -> dict[str, Any]:
    """The JSON of ``run`` with the fields that its key excludes."""
    watched = {name: getattr(run.train, name) for name in ALTER_NOTHING}
    return {"stated": run.as_json(), "watched": watched, "hf": getattr(run.model, "folder", None)}


def _run_of(value: Any) -> Run:
    run = Run.of(value["stated"])
    model = replace(run.model, folder=value["hf"]) if isinstance(run.model, HubConfig) else run.model
    return replace(run, model=model, train=replace(run.train, **value["watched"]))


_Run = Annotated[Run, PlainValidator(_run_of), PlainSerializer(_stored)]
_Timed = Annotated[
    Timed,
    PlainValidator(lambda value: Timed.of(value["stated"], value["hf"])),
    PlainSerializer(lambda of: {"stated": of.as_json(), "hf": getattr(of.model, "folder", None)}),
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Fields of all jobs. ``timeout``: seconds without an event after which its worker is ended;
    ``device``: see `modbench.train.numerics.check_device`; ``directory``: the working directory, which
    paths of texts and plugins are relative to."""

    suite: str
    label: str  #: of its row
    title: str  #: displayed
    folder: Path  #: its file, lease, events and log
    results: Path  #: results/<suite>
    plugins: Sequence[str] = ()
    threads: int = 1
    timeout: float = 1800.0
    device: str = "auto"
    directory: str = field(default_factory=os.getcwd)

    @property
    def key(self) -> str:
        """Names it and what it still does."""
        return str(self.identities[0])

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def ranks(self) -> int:
        """Processes that do it together, each on a device of its own."""
        return 1

    @property
    def identities(self) -> tuple[Identity, ...]:
        """The records that it stores, in order."""
        raise NotImplementedError

    def left(self: Of, done: set[Identity]) -> Of | None:
        """The part that is not ``done``; None if there is none."""
        return None if done.issuperset(self.identities) else self

    def failure(self, identity: Identity, status: Any, error: str, started: datetime) -> AnyRecord:
        """The record ``identity`` of a worker that ended before it stored it."""
        raise NotImplementedError

    def write(self) -> None:
        """Write the job's file. Raises UserError: the folder can't be written to."""
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            reason = f"{self.folder} can't be made ({error.strerror})"
            raise UserError(f"{reason}; make room, or give another --results") from error
        write_files(self.folder, {FILE: _file().dump_json(self)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunJob(Job):
    """Audits and trains a run, if ``train``, and takes measurements of its weights."""

    job: Literal["run"] = "run"
    run: _Run
    train: bool
    measurements: tuple[dict[str, Any], ...] = ()  #: subjects of `MeasurementRecord`
    audit: bool = False  #: of the scheme, once
    data: dict[str, Any]  #: of the text, as a record states it
    curve_tokens: int = MeasureConfig.curve_tokens
    keep: str = KeepConfig.weights
    track: TrackConfig = field(default_factory=TrackConfig)
    workers: int = 1  #: jobs that run at the same time

    @property
    def ranks(self) -> int:
        return self.run.train.ranks

    @cached_property
    def identities(self) -> tuple[Identity, ...]:
        trained = (run_identity(self.run),) if self.train else ()
        return (*trained, *map(measurement_identity, self.measurements))

    def left(self, done: set[Identity]) -> "RunJob | None":
        """See `Job.left`. A run whose weights are gone is trained again if it is to be measured."""
        subjects = tuple(s for s in self.measurements if measurement_identity(s) not in done)
        train = self.train and run_identity(self.run) not in done
        if subjects and not train and not has_weights(self.folder, subjects):
            train = True
        return replace(self, train=train, measurements=subjects) if train or subjects else None

    def failure(self, identity: Identity, status: Any, error: str, started: datetime) -> AnyRecord:
        import torch

        from modbench.measure.environment import environment

        machine = environment(torch.float32)
        # The other entries describe this process, not the one that ended.
        known = {name: machine[name] for name in ("cpu", "gpu", "torch")} | {"threads": self.threads}
        if identity[0] == "run":
            return run_record(self.run, self.data, known, status, error, started, workers=self.workers)
        subject = next(s for s in self.measurements if measurement_identity(s) == identity)
        return measurement_record(subject, {}, known, status, error, started, workers=self.workers)


def has_weights(folder: Path, subjects: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if ``folder`` holds what ``subjects`` measure: the weights of a run, and its routing
    at earlier points."""
    files = [folder / WEIGHTS, *(trace_file(folder, share) for share in earlier_points(subjects))]
    return all(of["measures"] == "audit" for of in subjects) or all(file.is_file() for file in files)


def earlier_points(subjects: Iterable[Mapping[str, Any]]) -> list[float]:
    """The shares of a run before its end at which ``subjects`` measure its routing."""
    points = (of["settings"]["points"] for of in subjects if of["measures"] == "routing")
    return [float(share) for of in points for share in of if share < 1]


def trace_file(folder: Path, share: float) -> Path:
    """The routing at ``share`` of the run in ``folder``."""
    return folder / "routing" / f"{share}.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeJob(Job):
    """Measures times or memory of a scheme, alone on its machine."""

    job: Literal["time"] = "time"
    measures: TimingKind
    session: str
    timed: _Timed
    time: dict[str, Any]  #: fields of `modbench.timing.config.TimeConfig`
    repetition: int
    machine: dict[str, Any]  #: environment of a process that measures
    earlier: dict[str, Any] | None = None  #: measurements of an earlier process of this job

    @property
    def identities(self) -> tuple[Identity, ...]:
        return (("timing", self.timed.key, self.session, self.measures, self.repetition),)

    def failure(self, identity: Identity, status: Any, error: str, started: datetime) -> AnyRecord:
        return self.record(self.machine, status, error, started)

    def record(
        self,
        machine: dict[str, Any],
        status: Any,
        error: str | None,
        started: datetime,
        *,
        asked_bytes: int | None = None,
        measured: dict[str, Any] | None = None,
    ) -> TimingRecord:
        """The record of the measurement, which finishes now."""
        stated = self.timed.as_json()
        return TimingRecord.made(
            session=self.session,
            measures=self.measures,
            timed=stated,
            time=self.time,
            protocol=PROTOCOL,
            key=key_of(stated),
            repetition=self.repetition,
            status=status,
            error=error,
            asked_bytes=asked_bytes,
            measured=measured or {},
            **made_by(machine, started, "milliseconds"),
        )


@cache
def _file() -> TypeAdapter[RunJob | TimeJob]:
    return TypeAdapter(Annotated[RunJob | TimeJob, Field(discriminator="job")])


def read_job(content: bytes) -> RunJob | TimeJob:
    """The job of a file with ``content``."""
    return _file().validate_json(content)


def run_record(
    run: Run,
    data: dict[str, Any],
    machine: dict[str, Any],
    status: Any,
    error: str | None,
    started: datetime,
    **fields: Any,
) -> RunRecord:
    """The record of ``run``, which ends now. ``fields``: its other fields; none for a crash."""
    nothing: dict[str, Any] = {"metrics": {}, "ends": [], "curve": []}
    return RunRecord.made(
        run=run.as_json(),
        key=run.key,
        data=data,
        status=status,
        error=error,
        **made_by(machine, started),
        **nothing | fields,
    )


def measurement_record(
    subject: dict[str, Any],
    result: dict[str, Any],
    machine: dict[str, Any],
    status: Any,
    error: str | None,
    started: datetime,
    **fields: Any,
) -> MeasurementRecord:
    """The record of the measurement ``subject``, which ends now."""
    return MeasurementRecord.made(
        measurement=subject,
        key=key_of(subject),
        result=result,
        status=status,
        error=error,
        **made_by(machine, started),
        **fields,
    )


def made_by(machine: dict[str, Any], started: datetime, precision: str = "seconds") -> dict[str, Any]:
    """The fields of a record that ends now, on ``machine``, with this code."""
    from modbench.measure.environment import code_version

    return {
        "code": code_version(),
        "environment": machine,
        "started": started.isoformat(timespec=precision),
        "finished": datetime.now(UTC).isoformat(timespec=precision),
    }
