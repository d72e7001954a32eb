"""Storage of records: lines of canonical JSON in ``results/<suite>/records/*.jsonl``.

Each record is written to a file of its own, which appears in one step: a process may be killed at any
moment and leaves a whole record or none. Results depend on the set of lines only, not on files, order
or duplicates. Records written before may share a file; older timings are in ``timings`` next to
``records``.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Required, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from modbench.errors import UserError
from modbench.records.line import SCHEMA, sha256
from modbench.records.record import (
    AnyRecord,
    AuditRecord,
    CellRecord,
    TimingRecord,
    parse_line,
    read_record,
)

RECORDS = "records"
_FOLDERS = (RECORDS, "timings")
_LONGEST = 300  #: characters of a sentence on a line
#: Age in seconds from which a temporary file is left over. Files are written in seconds; a writer on
#: another machine or in another container can't be asked.
_LEFT_OVER = 3600.0
_REPAIR = "; restore the file, or remove that line and run the suite again"
_REMEDIES = {
    "read": "make it readable, or move it out of the results",
    "written": "give --results a folder you may write to, with space",
}
_Parsed = TypeVar("_Parsed")
_Rerun = TypeVar("_Rerun", CellRecord, TimingRecord)


@contextlib.contextmanager
def _naming(where: Path, done: str) -> Iterator[None]:
    """Name the file or folder that can't be ``done``, read or written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{where}: can't be {done} ({reason}); {_REMEDIES[done]}") from error


def append_record(folder: Path, record: AnyRecord) -> Path:
    """Store ``record`` under ``folder`` (``results/<suite>``); return its file. Raises UserError: the
    record is not valid (changed since it was built), or writing fails."""
    line = record.line()
    read_record(line)
    path = Path(folder) / RECORDS / f"{secrets.token_hex(8)}.jsonl"
    with _naming(path.parent, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_files(path.parent, {path.name: f"{line}\n".encode()})
    return path


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files in ``folder`` by name, each in one step and after all contents are on the disk. Raises
    UserError: writing fails; the old files then are unchanged."""
    # Writers on other machines and in other containers may have the same process id.
    writer = f"{socket.gethostname()[:40]}.{secrets.token_hex(8)}"
    temporary = {folder / name: folder / f".{name}.{writer}.tmp" for name in contents}
    with _naming(folder, "written"):
        try:
            for path, written in temporary.items():
                with written.open("wb") as file:
                    file.write(contents[path.name])
                    file.flush()
                    os.fsync(file.fileno())
            for path, written in temporary.items():
                os.replace(written, path)
            _sync_folder(folder)
        finally:
            for written in temporary.values():
                with contextlib.suppress(OSError):  # an unwritable folder, reported above
                    written.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Fsync the folder, so that the entry of a new file is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that killed processes left in ``folder`` (``results/<suite>``) more
    than an hour ago; return them."""
    gone = []
    for path in [*folder.glob(".*.tmp"), *folder.glob(f"{RECORDS}/.*.tmp")]:
        with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
            if path.is_file() and time.time() - path.stat().st_mtime > _LEFT_OVER:
                path.unlink()
                gone.append(path)
    return gone


@dataclass(frozen=True)
class SuiteRecords:
    """All records of a suite, reruns included, without duplicate lines."""

    cells: list[CellRecord]  #: ordered by key, then line
    audits: dict[str, AuditRecord]  #: by key; of several, the one finished last
    timings: list[TimingRecord]  #: ordered by start
    cut: list[str]  #: a sentence for each file that is empty, or whose last line is cut off


def read_suite(folder: Path) -> SuiteRecords:
    """All records under ``folder`` (``results/<suite>``). An unterminated last line is skipped. Raises
    UserError: a line is not a valid record, or a file can't be read; names file and line."""
    found, cut = _read(folder, read_record)
    records = [found[line] for line in sorted(found, key=lambda line: (found[line].key, line))]
    audits = [record for record in records if isinstance(record, AuditRecord)]
    audits.sort(key=lambda audit: audit.finished_at)
    timings = [record for record in records if isinstance(record, TimingRecord)]
    timings.sort(key=lambda timing: timing.started_at)
    return SuiteRecords(
        cells=[record for record in records if isinstance(record, CellRecord)],
        audits={audit.key: audit for audit in audits},
        timings=timings,
        cut=cut,
    )


class Finished(NamedTuple):
    """Identity and outcome of a record; parts that its kind lacks are None."""

    kind: str
    key: str
    status: str | None
    audit_key: str | None
    run: str | None
    measurement: str | None
    repetition: int | None
    finished: str = ""  #: time, ISO 8601
    loss: float | None = None  #: held-out loss of a cell
    text: str | None = None  #: sha256 of a cell's text
    exponent: float | None = None  #: of its isoFLOP suite: the law of its learning rates
    margin: float | None = None  #: and that of its comparisons


#: The parts of `Finished` that are fields of a record.
_OWN = Finished._fields[:-4]


class _Metrics(TypedDict, total=False):
    heldout_loss: float | None


class _Data(TypedDict, total=False):
    sha256: str


class _Plan(TypedDict, total=False):
    exponent: float
    margin: float


class _Suite(TypedDict, total=False):
    isoflop: _Plan


class _Glance(TypedDict, total=False):
    """The parts of a line that `finished` reads. Pydantic skips the others, several times as fast as
    `json` parses the line."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    schema: int
    digest: str
    kind: Required[Literal["cell", "audit", "timing"]]
    key: Required[str]
    status: str | None
    audit_key: str | None
    run: str | None
    measurement: str | None
    repetition: int | None
    finished: str
    metrics: _Metrics
    data: _Data
    suite: _Suite


_GLANCE = TypeAdapter(_Glance)


def finished(folder: Path) -> list[Finished]:
    """One entry per record under ``folder`` (``results/<suite>``). Digests are checked, fields are not:
    this takes a small part of the time of `read_suite`. Raises UserError: see `read_suite`."""
    return list(_read(folder, _finished)[0].values())


def _finished(line: str) -> Finished:
    value: Any = _glance(line) or parse_line(line)
    metrics, data, suite = value.get("metrics"), value.get("data"), value.get("suite")
    plan = suite.get("isoflop") if isinstance(suite, dict) else None
    parts: dict[str, Any] = {name: value.get(name) for name in _OWN}
    parts["finished"] = parts["finished"] or ""
    parts["loss"] = metrics.get("heldout_loss") if isinstance(metrics, dict) else None
    parts["text"] = data.get("sha256") if isinstance(data, dict) else None
    for name in ("exponent", "margin"):
        parts[name] = plan.get(name) if isinstance(plan, dict) else None
    if not all(isinstance(part, str | int | float | None) for part in parts.values()):
        raise UserError("a field is of another type")
    return Finished(**parts)


def _glance(line: str) -> _Glance | None:
    """The parts of ``line``; None if it is an older line or not a valid one (see `parse_line`)."""
    try:
        found = _GLANCE.validate_json(line)
    except ValidationError:
        return None
    digest = found.get("digest")
    unsigned = line.replace(f'"digest":"{digest}"', '"digest":""', 1)
    return found if found.get("schema") == SCHEMA and digest == sha256(unsigned) else None


def _read(folder: Path, parse: Callable[[str], _Parsed]) -> tuple[dict[str, _Parsed], list[str]]:
    """The result of ``parse`` for each distinct line under ``folder``, by line; and a sentence for
    each file that is empty, or whose last line is cut off. Raises UserError: a line can't be parsed, or
    a file can't be read."""
    found: dict[str, _Parsed] = {}
    cut = []
    for path in _files(folder):
        with _naming(path, "read"):
            # split, not splitlines: other line separators may stand inside a JSON string.
            *lines, rest = path.read_bytes().split(b"\n")
        for number, raw in enumerate(lines, start=1):
            try:
                line = raw.decode()
                found[line] = found.get(line) or parse(line)
            except (UserError, UnicodeDecodeError) as error:
                reason = str(error) if isinstance(error, UserError) else "it is not UTF-8"
                where = f"{path}, line {number}: no valid record: "
                room = max(_LONGEST - len(where) - len(_REPAIR), 80)
                reason = reason if len(reason) <= room else f"{reason[: room - 1]}…"
                raise UserError(f"{where}{reason}{_REPAIR}") from error
        if not lines and not rest:
            cut.append(
                f"{path}: it is empty, and a record that it held is lost; running the suite again "
                "repeats what is missing; then remove the file"
            )
        if rest:
            cut.append(
                f"{path}: its last line is cut off and is skipped; running the suite again repeats what "
                "is missing"
            )
    return found, cut


def recorded_suites(results: Path) -> list[str]:
    """Names of the suites in ``results`` with a record. Raises UserError: a folder can't be read."""
    suites = (path for path in _inside(results) if path.is_dir())
    return [path.name for path in suites if any(file.stat().st_size for file in _files(path))]


def _files(suite: Path) -> list[Path]:
    """The files of records of ``suite``. Raises UserError: one is not a regular file; a FIFO would block
    its reader."""
    found = [path for name in _FOLDERS for path in _inside(suite / name) if path.suffix == ".jsonl"]
    for path in found:
        with _naming(path, "read"):
            regular = path.is_file()
        if not regular:
            raise UserError(f"{path}: it is not a regular file; move it out of the results")
    return found


def _inside(folder: Path) -> list[Path]:
    """Sorted contents; unlike `Path.glob`, this reports an unreadable folder."""
    with _naming(folder, "read"):
        # Names sort several times faster than paths.
        return [folder / name for name in sorted(os.listdir(folder))] if folder.exists() else []


def latest(
    records: Iterable[_Rerun], key: Callable[[_Rerun], Any] = lambda record: record.key
) -> list[_Rerun]:
    """One record per ``key``, ordered by it.

    Of several records of one key (reruns): an ``ok`` one before any other, then the one finished last,
    then the greatest line. The choice does not depend on their order.
    """
    ordered = sorted(records, key=lambda one: (one.status == "ok", one.finished_at, one.line()))
    best = {key(record): record for record in ordered}
    return [best[found] for found in sorted(best)]
