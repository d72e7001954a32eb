"""Identity and outcome of each record of a suite, read without most of its fields. No torch."""

from pathlib import Path
from typing import Literal, NamedTuple, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from modbench.errors import UserError
from modbench.records.line import SCHEMA, sha256
from modbench.records.record import parse_line
from modbench.records.store import parsed_file, parsed_lines, record_files


class Finished(NamedTuple):
    """Identity and outcome of a record; parts that its kind lacks are None."""

    kind: str
    key: str
    status: str | None = None
    audit_key: str | None = None
    session: str | None = None
    measures: str | None = None
    repetition: int | None = None
    finished: str = ""  #: time, ISO 8601
    workers: int | None = None  #: jobs that ran at the same time
    gpu: str | None = None
    text: str | None = None  #: sha256 of a run's text
    run: str | None = None  #: key of the run that a measurement is of
    loss: float | None = None  #: held-out loss of a measurement
    #: of an isoFLOP suite: the laws of its learning rates, by depth; None: it has one depth
    exponents: tuple[tuple[int | None, float], ...] = ()
    margin: float | None = None  #: and that of its comparisons
    error: str | None = None


class _Plan(TypedDict, total=False):
    depth: int
    exponent: float
    margin: float


class _Row(TypedDict, total=False):
    isoflop: _Plan


class _Suite(TypedDict, total=False):
    rows: list[_Row]


class _Metrics(TypedDict, total=False):
    heldout_loss: float | None


class _Result(TypedDict, total=False):
    metrics: _Metrics


class _MeasuredOn(TypedDict, total=False):
    run: str
    measures: str


class _Machine(TypedDict, total=False):
    gpu: str | None


class _Data(TypedDict, total=False):
    sha256: str


class _Glance(TypedDict, total=False):
    """The parts of a line that `finished` reads. Pydantic skips the others, several times as fast as
    `json` parses the line."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    schema: int
    digest: str
    kind: Required[Literal["run", "measurement", "suite", "audit", "timing"]]
    key: Required[str]
    status: str
    error: str | None
    audit_key: str
    session: str
    measures: str
    repetition: int
    finished: str
    workers: int
    environment: _Machine
    data: _Data
    measurement: _MeasuredOn
    result: _Result
    suite: _Suite


_GLANCE = TypeAdapter(_Glance)


def finished(folder: Path) -> list[Finished]:
    """One entry per record under ``folder`` (``results/<suite>``). Digests are checked, most fields are
    not: this takes a small part of the time of `read_suite`. Raises UserError: see `read_suite`."""
    return list(parsed_lines(folder, _finished)[0].values())


class Watch:
    """The entries of `finished` in ``folder`` (``results/<suite>``), read again as files are added; only
    of files that were written after ``since`` (seconds since 1970, by the clock of the file system)."""

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        self._folder = folder
        self._since = since
        self._files: set[str] = set()
        self._lines: dict[str, Finished] = {}

    def new(self) -> list[Finished]:
        """The entries that were added since the last call. Raises UserError: see `read_suite`."""
        before = len(self._lines)
        for path in record_files(self._folder, self._files):
            self._files.add(path.name)
            if not self._since or path.stat().st_mtime >= self._since:
                list(parsed_file(path, _finished, self._lines))
        return list(self._lines.values())[before:]


def _finished(line: str) -> Finished:
    record = _glance(line)
    if record is None:
        parse_line(line)  # names what is wrong with it
        raise UserError("a field is of another type")
    measured = record.get("measurement", {})
    plans = [row["isoflop"] for row in record.get("suite", {}).get("rows", []) if "isoflop" in row]
    plan = plans[0] if plans else _Plan()
    return Finished(
        kind=record["kind"],
        key=record["key"],
        status=record.get("status"),
        audit_key=record.get("audit_key"),
        session=record.get("session"),
        measures=record.get("measures", measured.get("measures")),
        repetition=record.get("repetition"),
        finished=record.get("finished", ""),
        workers=record.get("workers"),
        gpu=record.get("environment", {}).get("gpu"),
        text=record.get("data", {}).get("sha256"),
        run=measured.get("run"),
        loss=record.get("result", {}).get("metrics", {}).get("heldout_loss"),
        exponents=tuple({p.get("depth"): p["exponent"] for p in plans if "exponent" in p}.items()),
        margin=plan.get("margin"),
        error=record.get("error"),
    )


def _glance(line: str) -> _Glance | None:
    """The parts of ``line``; None if it is not a valid one (see `parse_line`)."""
    try:
        glance = _GLANCE.validate_json(line)
    except ValidationError:
        return None
    digest = glance.get("digest")
    unsigned = line.replace(f'"digest":"{digest}"', '"digest":""', 1)
    return glance if glance.get("schema") == SCHEMA and digest == sha256(unsigned) else None
