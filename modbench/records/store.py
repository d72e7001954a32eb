"""Storage of records: lines of canonical JSON in ``results/<suite>/records/*.jsonl``.

Each record is written to a file of its own, which appears in one step: a process may be killed at any
moment and leaves a whole record or none. Results depend on the set of lines only, not on files, order
or duplicates; several records may share a file.
"""

import contextlib
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
_Parsed = TypeVar("_Parsed")
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
    left_out: list[str]  #: a sentence for each line or file that is not among them


def read_suite(folder: Path, *, strict: bool = True) -> Records:
    """All records under ``folder`` (``results/<suite>``). An unterminated last line is left out, and,
    unless ``strict``, each line that is not a valid record. Raises UserError: such a line, or a file
    can't be read; names file and line."""
    by_line, left_out = parsed_lines(folder, read_record, strict=strict)
    records = [by_line[line] for line in sorted(by_line, key=lambda line: (by_line[line].key, line))]

    def of(kind: type[_Kind]) -> list[_Kind]:
        return [record for record in records if isinstance(record, kind)]

    audits = sorted(of(AuditRecord), key=lambda audit: audit.finished_at)
    return Records(
        runs=of(RunRecord),
        measurements=of(MeasurementRecord),
        audits={audit.key: audit for audit in audits},
        timings=sorted(of(TimingRecord), key=lambda timing: timing.started_at),
        suites=sorted(of(SuiteRecord), key=rank_of),
        left_out=left_out,
    )


def read_lines(folder: Path) -> dict[str, AnyRecord]:
    """The record of each distinct line under ``folder``. Raises UserError: see `read_suite`."""
    return parsed_lines(folder, read_record)[0]


def read_records(path: Path) -> list[AnyRecord]:
    """The records of the file ``path``. Raises UserError: see `read_suite`."""
    by_line: dict[str, AnyRecord] = {}
    list(parsed_file(path, read_record, by_line))
    return list(by_line.values())


def read_audit(folder: Path, key: str) -> AuditRecord | None:
    """The newest audit ``key`` under ``folder`` (``results/<suite>``). Only its lines are parsed.
    Raises UserError: see `read_suite`."""
    audits = [record for record in _of_key(folder, key) if isinstance(record, AuditRecord)]
    return max(audits, key=lambda audit: audit.finished_at, default=None)


def read_run(folder: Path, key: str) -> RunRecord | None:
    """The record of the run ``key`` under ``folder`` (``results/<suite>``) that counts; see `latest`.
    Only its lines are parsed. Raises UserError: see `read_suite`."""
    return next(iter(latest(r for r in _of_key(folder, key) if isinstance(r, RunRecord))), None)


def _of_key(folder: Path, key: str) -> list[AnyRecord]:
    # Lines are canonical JSON, so that the text of a field is known.
    wanted = f'"key":"{key}"'
    by_line, _ = parsed_lines(folder, lambda line: read_record(line) if wanted in line else None)
    return [record for record in by_line.values() if record is not None]


def parsed_lines(
    folder: Path, parse: Callable[[str], _Parsed], *, strict: bool = True
) -> tuple[dict[str, _Parsed], list[str]]:
    """The result of ``parse`` for each distinct line under ``folder``, by line; and a sentence for each
    file that is empty or whose last line is cut off, and, unless ``strict``, each line that can't be
    parsed. Raises UserError: a file can't be read; if ``strict``, also a line."""
    parsed: dict[str, _Parsed] = {}
    left_out: list[str] = []
    for path in record_files(folder):
        left_out += parsed_file(path, parse, parsed, strict=strict)
    return parsed, left_out


def parsed_file(
    path: Path, parse: Callable[[str], _Parsed], parsed: dict[str, _Parsed], *, strict: bool = True
) -> Iterator[str]:
    """Add the lines of ``path`` to ``parsed`` and yield sentences; see `parsed_lines`."""
    raw = b""
    for number, raw in enumerate(_lines_of(path), start=1):
        if not raw.endswith(b"\n"):
            yield (
                f"{path}: its last line is cut off and is skipped; running the suite again repeats what "
                "is missing"
            )
            return
        try:
            line = raw[:-1].decode()
            parsed[line] = parsed.get(line) or parse(line)
        except (UserError, UnicodeDecodeError) as error:
            sentence = _damage(path, number, error)
            if strict:
                raise UserError(sentence) from error
            yield f"{sentence}; it is left out"
    if not raw:
        yield (
            f"{path}: it is empty, and a record that it held is lost; running the suite again "
            "repeats what is missing; then remove the file"
        )


def _lines_of(path: Path) -> Iterator[bytes]:
    """The lines of ``path`` with their ends. Raises UserError: it can't be read, or a line is longer
    than any record."""
    with _naming(path, "read"), path.open("rb") as file:
        while line := file.readline(_LARGEST + 1):
            if len(line) > _LARGEST:
                raise UserError(
                    f"{path}: it has a line above 64 MB, which is no record; move it out of the results"
                )
            yield line


def _damage(path: Path, number: int, error: UserError | UnicodeDecodeError) -> str:
    """The sentence on line ``number`` of ``path``, which ``error`` says is no record."""
    reason = str(error) if isinstance(error, UserError) else "it is not UTF-8"
    where = f"{path}, line {number}: no valid record: "
    room = max(_LONGEST - len(where) - len(_REPAIR), 80)
    reason = reason if len(reason) <= room else f"{reason[: room - 1]}…"
    return f"{where}{reason}{_REPAIR}"


def recorded_suites(results: Path) -> list[str]:
    """Names of the suites in ``results`` with a record. Raises UserError: a folder can't be read."""
    suites = (path for path in _inside(results) if path.is_dir())
    return [path.name for path in suites if any(file.stat().st_size for file in record_files(path))]


def record_files(suite: Path, known: Collection[str] = frozenset()) -> list[Path]:
    """The files of records of ``suite`` whose names are not ``known``. Raises UserError: one is not a
    regular file: a FIFO would block its reader, and a link may lead to any file."""
    folder = suite / RECORDS
    paths = [path for path in _inside(folder, known) if path.suffix == ".jsonl"]
    if folder.is_symlink():
        raise _not_regular(folder)
    for path in paths:
        with _naming(path, "read"):
            mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise _not_regular(path)
    return paths


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


def _inside(folder: Path, known: Collection[str] = frozenset()) -> list[Path]:
    """Sorted contents except those ``known``; unlike `Path.glob`, this reports an unreadable folder."""
    with _naming(folder, "read"):
        # Names sort several times faster than paths.
        names = os.listdir(folder) if folder.exists() else []
    if strange := next(filter(CONTROL.search, names), None):
        raise UserError(f"{folder}: a name in it has control characters ({strange!r}); rename it")
    return [folder / name for name in sorted(names) if name not in known]


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
