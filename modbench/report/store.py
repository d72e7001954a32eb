"""Storage of records: ``results/<suite>/records/<writer>.jsonl``, one shard per writer process.

Measured with eight writers under random SIGKILL: a shared file loses records even with a lock, one
shard per writer loses none. Shards are append-only. Results depend on the set of lines only, not on
shards, order or duplicates. Older timings are in ``timings`` next to ``records``.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from modbench.errors import UserError
from modbench.report.record import (
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
_REPAIR = "; restore the file, or remove that line and run the suite again"


_REMEDIES = {
    "read": "make it readable, or move it out of the results",
    "written": "give --results a folder you may write to, with space",
}


@contextlib.contextmanager
def _naming_place(where: Path, done: str) -> Iterator[None]:
    """Name the file or folder that can't be ``done``, read or written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{where}: can't be {done} ({reason}); {_REMEDIES[done]}") from error


class ShardWriter:
    """Writer of a new shard in ``folder`` (``results/<suite>``); a context manager.

    The shard is opened at once, so that a read-only folder is found before training starts. Closing
    removes an empty shard.

    Raises:
        UserError: the folder can't be created or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / RECORDS / f"{secrets.token_hex(8)}.jsonl"
        with _naming_place(self.path.parent, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._file = os.open(self.path, flags, 0o644)
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see `remove_leftovers`

    def append(self, record: AnyRecord) -> None:
        """Write one line and fsync it.

        Raises:
            UserError: the record is not valid (changed since it was built), or writing fails; the
                shard then is unchanged.
        """
        line = record.line()
        read_record(line)
        size = os.fstat(self._file).st_size
        rest = memoryview(f"{line}\n".encode())
        with _naming_place(self.path, "written"):
            try:
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
                _sync_folder(self.path.parent)
            except OSError:
                # A partial line would corrupt the next one.
                os.ftruncate(self._file, size)
                raise

    def close(self) -> None:
        if self._file < 0:
            return
        if os.fstat(self._file).st_size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    """Fsync the folder, so that the entry of a new file is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class SuiteRecords:
    """All records of a suite, reruns included, without duplicate lines."""

    cells: list[CellRecord]  #: ordered by key, then line
    audits: dict[str, AuditRecord]  #: by key; of several, the one finished last
    timings: list[TimingRecord]  #: ordered by start
    cut: list[str]  #: a sentence for each shard whose last line is cut off


def read_suite(folder: Path) -> SuiteRecords:
    """All records under ``folder`` (``results/<suite>``).

    An unterminated last line is skipped: its writer was killed, or is still writing.

    Raises:
        UserError: a line is not a valid record, or a shard can't be read; names file and line.
    """
    lines: dict[str, AnyRecord] = {}
    cut = []
    for shard in _shards(Path(folder)):
        for number, line in _lines(shard):
            if number == 0:
                cut.append(line)
            elif line not in lines:
                with _naming(shard, number):
                    lines[line] = read_record(line)
    records = [lines[line] for line in sorted(lines, key=lambda line: (lines[line].key, line))]
    cells = [record for record in records if isinstance(record, CellRecord)]
    audits = [record for record in records if isinstance(record, AuditRecord)]
    audits.sort(key=lambda audit: audit.finished_at)
    timings = [record for record in records if isinstance(record, TimingRecord)]
    timings.sort(key=lambda timing: timing.started_at)
    return SuiteRecords(cells, {audit.key: audit for audit in audits}, timings, cut)


def read_records(folder: Path) -> list[CellRecord]:
    """The cells of `read_suite`."""
    return read_suite(folder).cells


class Finished(NamedTuple):
    """Identity and status of a record; parts that its kind lacks are None."""

    kind: str
    key: str
    status: str | None
    audit_key: str | None
    run: str | None
    measurement: str | None
    repetition: int | None


def finished(folder: Path) -> list[Finished]:
    """One entry per line under ``folder`` (``results/<suite>``). Digests are checked, fields are not:
    this takes a tenth of the time of `read_suite`.

    Raises:
        UserError: see `read_suite`.
    """
    found = []
    for shard in _shards(Path(folder)):
        for number, line in _lines(shard):
            if number:
                with _naming(shard, number):
                    value = parse_line(line)
                    parts: list[Any] = [value.get(name) for name in Finished._fields]
                    if not all(isinstance(part, str | int | None) for part in parts):
                        raise UserError("a field is of another type")
                    found.append(Finished(*parts))
    return found


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the empty shards and the temporary files that killed processes left in ``folder``
    (``results/<suite>``), and return them. The caller holds the suite's lock."""
    gone = [shard for shard in _shards(Path(folder)) if shard.stat().st_size == 0 and _is_free(shard)]
    gone += [path for path in Path(folder).glob(".*.tmp") if not _is_written(path)]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def _is_free(shard: Path) -> bool:
    """Return True if no process has ``shard`` open for writing."""
    with shard.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def temporary_path(path: Path) -> Path:
    """A file next to ``path`` for this process to write, before it takes the place of ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_written(temporary: Path) -> bool:
    """Return True if the process that writes ``temporary`` is alive."""
    pid = temporary.name.split(".")[-2]
    return pid.isdecimal() and psutil.pid_exists(int(pid))


def recorded_suites(results: Path) -> list[str]:
    """Names of the suites in ``results`` with a non-empty shard.

    Raises:
        UserError: a folder can't be read.
    """
    suites = (path for path in _inside(results) if path.is_dir())
    return [path.name for path in suites if any(shard.stat().st_size for shard in _shards(path))]


def _shards(suite: Path) -> list[Path]:
    """The shards of ``suite``.

    Raises:
        UserError: one is not a regular file; a FIFO would block its reader.
    """
    found = [path for name in _FOLDERS for path in _inside(suite / name) if path.suffix == ".jsonl"]
    for path in found:
        with _naming_place(path, "read"):
            regular = path.is_file()
        if not regular:
            raise UserError(f"{path}: it is not a regular file; move it out of the results")
    return found


def _inside(folder: Path) -> list[Path]:
    """Sorted contents; unlike `Path.glob`, this reports an unreadable folder."""
    with _naming_place(folder, "read"):
        return sorted(folder.iterdir()) if folder.exists() else []


def _lines(shard: Path) -> Iterator[tuple[int, str]]:
    """The complete lines of ``shard`` with their numbers, from 1; number 0 has a sentence if the last
    line is cut off."""
    with _naming_place(shard, "read"):
        content = shard.read_bytes()
    # split, not splitlines: other line separators may stand inside a JSON string.
    *lines, rest = content.split(b"\n")
    for number, raw in enumerate(lines, start=1):
        with _naming(shard, number):
            line = raw.decode()
        yield number, line
    if rest:
        yield (
            0,
            f"{shard}: its last line is cut off (a killed process) and is skipped; running the suite "
            "again repeats what is missing",
        )


@contextlib.contextmanager
def _naming(shard: Path, number: int) -> Iterator[None]:
    """Name file and line in the error of a line that can't be read."""
    try:
        yield
    except (UserError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, UserError) else "it is not UTF-8"
        where = f"{shard}, line {number}: no valid record: "
        room = max(_LONGEST - len(where) - len(_REPAIR), 80)
        reason = reason if len(reason) <= room else f"{reason[: room - 1]}…"
        raise UserError(f"{where}{reason}{_REPAIR}") from error


def latest(records: Iterable[CellRecord]) -> list[CellRecord]:
    """One record per key, ordered by key.

    Of several records of one key (reruns): an ``ok`` one before any other, then the one finished last,
    then the greatest line. The choice does not depend on their order.
    """
    ordered = sorted(records, key=lambda one: (one.status == "ok", one.finished_at, one.line()))
    best = {record.key: record for record in ordered}
    return [best[key] for key in sorted(best)]
