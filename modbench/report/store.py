"""Storage of records: ``results/<suite>/records/<writer>.jsonl``, one shard per writer process;
timings are in ``timings`` next to ``records``.

Measured with eight writers under random SIGKILL: a shared file loses records even with a lock, one
shard per writer loses none. Shards are append-only. Results depend on the set of lines only, not on
shards, order or duplicates.
"""

import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from modbench.errors import UserError
from modbench.report.audit_record import KIND, AuditRecord, by_key
from modbench.report.line import Line, json_object
from modbench.report.record import Record

RECORDS = "records"
L = TypeVar("L", bound=Line)


class ShardWriter:
    """Writer of a new shard in ``folder/under`` (``results/<suite>/records``); a context manager.

    The shard is opened at once, so that a read-only folder is found before training starts. Closing
    removes an empty shard.

    Raises:
        UserError: the folder can't be created or written to.
    """

    def __init__(self, folder: Path, under: str = RECORDS) -> None:
        self.path = Path(folder) / under / f"{secrets.token_hex(8)}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._file = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise UserError(_cannot_write(self.path.parent, error)) from error

    def append(self, record: Line) -> None:
        """Write one line and fsync it.

        Raises:
            UserError: the record is not valid (changed since it was built), or writing fails; the
                shard then is unchanged.
        """
        line = record.line()
        type(record).from_line(line)
        size = os.fstat(self._file).st_size
        rest = memoryview(f"{line}\n".encode())
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
            _sync_folder(self.path.parent)
        except OSError as error:
            # A partial line would corrupt the next one.
            os.ftruncate(self._file, size)
            raise UserError(_cannot_write(self.path, error)) from error

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


def _cannot_write(where: Path, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"{where}: can't be written ({reason}); give --results a folder you may write to, with space"


def _sync_folder(folder: Path) -> None:
    """Fsync the folder, so that the entry of a new file is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_suite(folder: Path) -> tuple[list[Record], dict[str, AuditRecord]]:
    """All records of cells under ``folder`` (``results/<suite>``), reruns included, without duplicate
    lines, ordered by key and line; and the audits that they refer to, by key.

    An unterminated last line is skipped: its writer was killed, or is still writing.

    Raises:
        UserError: a line is not a valid record, or a shard can't be read; names file and line.
    """
    lines = read_lines(Path(folder) / RECORDS, _record_of)
    ordered = [lines[line] for line in sorted(lines, key=lambda line: (lines[line].key, line))]
    audits = by_key(record for record in ordered if isinstance(record, AuditRecord))
    return [record for record in ordered if isinstance(record, Record)], audits


def _record_of(line: str) -> Record | AuditRecord:
    value = json_object(line)
    kind = AuditRecord if value.get("kind") == KIND else Record
    return kind.from_object(value, line)


def read_records(folder: Path) -> list[Record]:
    """The cells of `read_suite`."""
    return read_suite(folder)[0]


def read_audits(folder: Path) -> dict[str, AuditRecord]:
    """The audits of `read_suite`."""
    return read_suite(folder)[1]


def recorded_suites(results: Path, under: Iterable[str]) -> list[str]:
    """Names of the suites in ``results`` with a non-empty shard in one of their folders ``under``.

    Raises:
        UserError: a folder can't be read.
    """
    found = set()
    for suite in _inside(results):
        for folder in under if suite.is_dir() else ():
            if any(path.stat().st_size for path in _shards(suite / folder)):
                found.add(suite.name)
    return sorted(found)


def _shards(folder: Path) -> list[Path]:
    return [path for path in _inside(folder) if path.suffix == ".jsonl"]


def _inside(folder: Path) -> list[Path]:
    """Sorted contents; unlike `Path.glob`, this reports an unreadable folder."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(_cannot_read(folder, error)) from error


def read_lines(shards: Path, parse: Callable[[str], L]) -> dict[str, L]:
    """All shards in ``shards`` as {line: parsed line}; see `read_suite`."""
    lines: dict[str, L] = {}
    for path in _shards(shards):
        lines.update(_read_shard(path, parse))
    return lines


def cut_lines(folder: Path, under: str) -> list[str]:
    """A sentence for each shard in ``folder/under`` whose last line is cut off, which readers skip.

    Raises:
        UserError: a shard can't be read.
    """
    said = []
    for path in _shards(Path(folder) / under):
        _, _, rest = _content(path).rpartition(b"\n")
        if rest:
            said.append(
                f"{path}: its last line is cut off (a killed process) and is skipped; running the suite "
                "again repeats what is missing"
            )
    return said


def _read_shard(path: Path, parse: Callable[[str], L]) -> Iterable[tuple[str, L]]:
    content = _content(path)
    # split, not splitlines: other line separators may stand inside a JSON string.
    for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            line = raw.decode()
            yield line, parse(line)
        except (UserError, UnicodeDecodeError) as error:
            reason = error if isinstance(error, UserError) else "it is not UTF-8"
            raise UserError(
                f"{path}, line {number}: no valid record: {reason}; restore the file, or remove that "
                "line and run the suite again, which repeats only that cell"
            ) from error


def _content(shard: Path) -> bytes:
    try:
        return shard.read_bytes()
    except OSError as error:
        raise UserError(_cannot_read(shard, error)) from error


def _cannot_read(where: Path, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"{where}: can't be read ({reason}); make it readable, or move it out of the results"


def latest(records: Iterable[Record]) -> list[Record]:
    """One record per key, ordered by key.

    Of several records of one key (reruns): an ``ok`` one before any other, then the one finished last,
    then the greatest line. The choice does not depend on their order.
    """
    best: dict[str, Record] = {}
    for record in records:
        other = best.get(record.key)
        if other is None or _preference(record) > _preference(other):
            best[record.key] = record
    return [best[key] for key in sorted(best)]


def _preference(record: Record) -> tuple[object, ...]:
    return (record.status == "ok", record.finished_at, record.line())
