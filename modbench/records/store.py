"""Storage of records: lines of canonical JSON in ``results/<suite>/records/*.jsonl``.

Each record is written to a file of its own, which appears in one step: a process may be killed at any
moment and leaves a whole record or none. Results depend on the set of lines only, not on files, order
or duplicates; several records may share a file.
"""

import contextlib
import gc
import os
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from modbench.errors import CONTROL, UserError
from modbench.records.record import (
    AnyRecord,
    AuditRecord,
    MeasurementRecord,
    RunRecord,
    SuiteRecord,
    TimingRecord,
    rank_of,
    read_record,
)

RECORDS = "records"
_LONGEST = 300  #: characters of a sentence on a line: a few lines of a terminal
#: Age in seconds from which a temporary file is left over. Files are written in seconds; a writer on
#: another machine or in another container can't be asked.
_LEFT_OVER = 3600.0
#: Bytes of the longest record that is read. The longest of the shipped suites have 0.4 MB.
_LARGEST = 64 * 2**20
_REPAIR = "; restore the file, or remove that line and run the suite again"
_REMEDIES = {
    "read": "make it readable, or move it out of the results",
    "written": "choose a folder that you may write to, with space",
}
_Rerun = TypeVar("_Rerun", RunRecord, MeasurementRecord, TimingRecord)
_Kind = TypeVar("_Kind")


@contextlib.contextmanager
def _naming(where: Path, done: str) -> Iterator[None]:
    """Name the file or folder that can't be ``done``, read or written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{where}: can't be {done} ({reason}); {_REMEDIES[done]}") from error


def append_record(folder: Path, record: AnyRecord) -> Path:
    """Store ``record`` under ``folder`` (``results/<suite>``); return its file. Raises UserError:
    writing fails."""
    path = Path(folder) / RECORDS / f"{secrets.token_hex(8)}.jsonl"
    write_files(path.parent, {path.name: f"{record.line()}\n".encode()})
    return path


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files in ``folder``, which is made, by name, each in one step and after all contents are on
    the disk. Raises UserError: writing fails; the old files then are unchanged."""
    # Writers on other machines and in other containers may have the same process id.
    writer = f"{socket.gethostname()[:40]}.{secrets.token_hex(8)}"
    temporary = {folder / name: folder / f".{name}.{writer}.tmp" for name in contents}
    with _naming(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
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


def read_bytes(path: Path) -> bytes | None:
    """The contents of ``path``; None if there is no such file. Raises UserError: it can't be read."""
    with _naming(path, "read"):
        return path.read_bytes() if path.exists() else None


def _sync_folder(folder: Path) -> None:
    """Fsync the folder, so that the entry of a new file is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that killed processes left in ``folder`` (``results/<suite>``) more
    than an hour ago, by the clock of the file system; return them."""
    gone = []
    now = _clock_of(folder)
    places = (".*.tmp", f"{RECORDS}/.*.tmp", "runs/*/.*.tmp")
    for path in chain.from_iterable(map(folder.glob, places)):
        with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
            if path.is_file() and now - path.stat().st_mtime > _LEFT_OVER:
                path.unlink()
                gone.append(path)
    return gone


def _clock_of(folder: Path) -> float:
    """The time at which the file system of ``folder`` says that a file is written now; that of this
    machine if nothing can be written there."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.", suffix=".tmp") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


@dataclass(frozen=True)
class Records:
    """All records of a suite, reruns included, without duplicate lines."""

    runs: list[RunRecord]  #: ordered by key, then line
    measurements: list[MeasurementRecord]  #: ordered by key, then line
    audits: dict[str, AuditRecord]  #: by key; of several, the one finished last
    timings: list[TimingRecord]  #: ordered by start
    suites: list[SuiteRecord]  #: in ascending order: the last one counts


def read_suite(folder: Path) -> Records:
    """All records under ``folder`` (``results/<suite>``). Raises UserError: a line is not a valid
    record, or a file can't be read; names file and line."""
    with no_collection():
        records = list(read_files(record_files(folder)))
    records.sort(key=lambda record: (record.key, record.line()))

    def of(kind: type[_Kind]) -> list[_Kind]:
        return [record for record in records if isinstance(record, kind)]

    audits = sorted(of(AuditRecord), key=lambda audit: audit.finished_at)
    return Records(
        runs=of(RunRecord),
        measurements=of(MeasurementRecord),
        audits={audit.key: audit for audit in audits},
        timings=sorted(of(TimingRecord), key=lambda timing: timing.started_at),
        suites=sorted(of(SuiteRecord), key=rank_of),
    )


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage: records hold no cycles, and 100,000 of them would be searched many times."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_records(path: Path) -> list[AnyRecord]:
    """The records of the file ``path``. Raises UserError: see `read_suite`."""
    return list(read_files([path]))


def read_audit(folder: Path, key: str) -> AuditRecord | None:
    """The newest audit ``key`` under ``folder`` (``results/<suite>``). Only its lines are parsed.
    Raises UserError: see `read_suite`."""
    audits = [record for record in _of_key(folder, key) if isinstance(record, AuditRecord)]
    return max(audits, key=lambda audit: audit.finished_at, default=None)


def read_run(folder: Path, key: str) -> RunRecord | None:
    """The record of the run ``key`` under ``folder`` (``results/<suite>``) that counts; see `latest`.
    Only its lines are parsed. Raises UserError: see `read_suite`."""
    return next(iter(latest(r for r in _of_key(folder, key) if isinstance(r, RunRecord))), None)


def read_measurement(folder: Path, key: str) -> MeasurementRecord | None:
    """The measurement ``key`` under ``folder`` (``results/<suite>``) that counts. Raises UserError: see
    `read_suite`."""
    return next(iter(latest(r for r in _of_key(folder, key) if isinstance(r, MeasurementRecord))), None)


def _of_key(folder: Path, key: str) -> Iterator[AnyRecord]:
    # Lines are canonical JSON, so that the text of a field is known.
    return read_files(record_files(folder), holding=f'"key":"{key}"'.encode())


def read_files(
    paths: Iterable[Path], *, holding: bytes = b"", seen: set[str] | None = None
) -> Iterator[AnyRecord]:
    """The record of each line of ``paths`` that holds a text and was not ``seen``, a set of digests that
    grows. Raises UserError: a file can't be read or is empty, a line is no record, or the last one is
    cut off."""
    seen = set() if seen is None else seen
    for path in paths:
        raw = b""
        for number, raw in enumerate(_lines_of(path), start=1):
            if not raw.endswith(b"\n"):
                raise UserError(_damage(path, number, "it is cut off"))
            if holding in raw:
                try:
                    record = read_record(raw[:-1])
                except UserError as error:
                    raise UserError(_damage(path, number, str(error))) from error
                if record.digest not in seen:
                    seen.add(record.digest)
                    yield record
        if not raw:
            raise UserError(
                f"{path}: it is empty, and a record that it held is lost; remove the file, and run the "
                "suite again, which repeats what is missing"
            )


def _lines_of(path: Path) -> Iterator[bytes]:
    """The lines of ``path`` with their ends. Raises UserError: it can't be read, or a line is longer
    than any record."""
    with _naming(path, "read"), open(path, "rb") as file:
        while line := file.readline(_LARGEST + 1):
            if len(line) > _LARGEST:
                raise UserError(
                    f"{path}: it has a line above 64 MB, which is no record; move it out of the results"
                )
            yield line


def _damage(path: Path, number: int, reason: str) -> str:
    """The sentence on line ``number`` of ``path``, which is no record for ``reason``."""
    where = f"{path}, line {number}: no valid record: "
    room = max(_LONGEST - len(where) - len(_REPAIR), 80)
    reason = reason if len(reason) <= room else f"{reason[: room - 1]}…"
    return f"{where}{reason}{_REPAIR}"


def recorded_suites(results: Path) -> list[str]:
    """Names of the suites in ``results`` with a record. Raises UserError: a folder can't be read."""
    suites = (results / entry.name for entry in _inside(results) if entry.is_dir())
    return [path.name for path in suites if any(file.stat().st_size for file in record_files(path))]


def record_files(suite: Path, known: Collection[str] = frozenset()) -> list[Path]:
    """The files of records of ``suite`` whose names are not ``known``. Raises UserError: one is not a
    regular file: a FIFO would block its reader, and a link may lead to any file."""
    folder = suite / RECORDS
    files = [file for file in _inside(folder, known) if file.name.endswith(".jsonl")]
    if folder.is_symlink():
        raise _not_regular(folder)
    for file in files:
        if not file.is_file(follow_symlinks=False):
            raise _not_regular(folder / file.name)
    return [folder / file.name for file in files]


def refuse_links(suite: Path) -> None:
    """Raises UserError: ``suite`` (``results/<suite>``), which itself may be a link, holds a link or
    another special file: what is written there would alter a file elsewhere."""
    for folder, folders, files in os.walk(suite):
        for path in map(Path(folder).joinpath, (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
                mode = path.lstat().st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise _not_regular(path)


def _not_regular(path: Path) -> UserError:
    return UserError(
        f"{path}: it is not a regular file, or a link; move it out of the results (the folder of a "
        "suite may be one)"
    )


def _inside(folder: Path, known: Collection[str] = frozenset()) -> list[os.DirEntry[str]]:
    """Contents by name except those ``known``; unlike `Path.glob`, this reports an unreadable folder."""
    with _naming(folder, "read"):
        entries = [*os.scandir(folder)] if folder.exists() else []
    if strange := next((entry.name for entry in entries if CONTROL.search(entry.name)), None):
        raise UserError(f"{folder}: a name in it has control characters ({strange!r}); rename it")
    return sorted((entry for entry in entries if entry.name not in known), key=lambda entry: entry.name)


def latest(
    records: Iterable[_Rerun], key: Callable[[_Rerun], Any] = lambda record: record.key
) -> list[_Rerun]:
    """One record per ``key``, ordered by it.

    Of several records of one key (reruns): an ``ok`` one before any other, then the one finished last,
    then the greatest line. The choice does not depend on their order.
    """
    ordered = sorted(
        records, key=lambda record: (record.status == "ok", record.finished_at, record.line())
    )
    best = {key(record): record for record in ordered}
    return [best[identity] for identity in sorted(best)]
