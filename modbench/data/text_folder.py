"""Text in a folder: .jsonl and .parquet files with one document per line or row, or .txt files of one
document each. It is read in parts, so that memory does not grow with the folder and several processes
can share the work."""

import codecs
import gzip
import hashlib
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from modbench.data.documents import no_field, text_of
from modbench.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

#: Least bytes of text in a part: about 15 s of work, which is what stopping a process costs.
PART_BYTES = 64 * 2**20
#: Approximate number of parts of a large folder: each is an open file in a training process, which
#: usually may have 1,024.
PARTS = 200
#: Bytes at either end of a file that its fingerprint covers.
_ENDS = 64 * 2**10
#: Bytes of text in a byte of a .gz file, about. Parts of a folder that is prepared depend on it.
_UNPACKED = 3
#: Endings of text files. Only the first group that a folder has is read: keys of runs name the text of
#: folders with .jsonl or .parquet files, and a README.txt next to them is no document.
ENDINGS = ((".jsonl", ".parquet"), (".jsonl.gz",), (".txt", ".txt.gz"))
#: Names of files that say how many there are.
_COUNTED = re.compile(r"(.*)-\d+-of-(\d+)(\.\w+(?:\.gz)?)")


@dataclass(frozen=True)
class Range:
    """Bytes ``start`` to ``stop`` of a .jsonl file, to which the lines belong that start in them; row
    groups of a .parquet file; or all of another file."""

    file: Path
    start: int
    stop: int
    size: int  #: bytes of text, about

    def texts(self, field: str) -> Iterator[str]:
        """The texts of its documents, empty for one without, read a few at a time. Raise a `UserError`
        if no document has the ``field``, or the file is damaged."""
        from pyarrow import ArrowException

        ending = _ending(self.file)
        try:
            if ending == ".parquet":
                yield from self._rows(field)
            elif ending in (".jsonl", ".jsonl.gz"):
                yield from self._lines(field)
            else:
                yield self._document()
        except (OSError, EOFError, zlib.error, ArrowException) as error:
            raise _damaged(self.file, error) from None

    def _document(self) -> str:
        with _opened(self.file) as file:
            try:
                return file.read().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.file} is not UTF-8 (byte {error.start} of the text); convert it first"
                ) from None

    def _lines(self, field: str) -> Iterator[str]:
        with _opened(self.file) as file:
            if self.start:
                file.seek(self.start - 1)
                file.readline()  # the rest of a line of the previous range
            elif file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            known: set[str] = set()
            while (at := file.tell()) < self.stop and (line := file.readline()):
                if line.strip():
                    row = self._row(line, at)
                    known |= row.keys()
                    yield text_of(row, field)
            if self.start == 0 and known and field not in known:
                raise no_field(self.file, field, known)

    def _row(self, line: bytes, at: int) -> dict[str, Any]:
        """The JSON object in ``line``, which starts at the byte ``at``."""
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            number = 1
            with _opened(self.file) as file:
                while file.tell() < at:
                    file.readline()
                    number += 1
            raise UserError(
                f"{self.file}:{number} is not a JSON object ({error}); fix or remove the line"
            ) from None

    def _rows(self, field: str) -> Iterator[str]:
        with _parquet(self.file) as file:
            if field not in file.schema_arrow.names:
                raise no_field(self.file, field, file.schema_arrow.names)
            groups = range(self.start, self.stop)
            for batch in file.iter_batches(64, row_groups=groups, columns=[field], use_threads=False):
                yield from (text_of(row, field) for row in batch.to_pylist())


#: Ranges that one process reads, in order.
Part = tuple[Range, ...]


def _ending(path: Path) -> str:
    return f"{Path(path.stem).suffix}.gz" if path.suffix == ".gz" else path.suffix


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _by_ending(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The files in ``folder`` and the folders in it by ending, and the endings that are read. Raise a
    `UserError` if there are none."""
    files: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files.setdefault(_ending(path), []).append(path)
    for group in ENDINGS:
        if read := [ending for ending in group if ending in files]:
            return files, read
    raise UserError(
        f"data path '{folder}' is a folder without {' or '.join(chain.from_iterable(ENDINGS))} files; "
        "give the path of a folder that has some"
    )


def left_out(folder: Path) -> str:
    """A sentence on the endings of files in ``folder`` that are not read; empty if all are."""
    files, read = _by_ending(folder)
    others = sorted(ending or "no ending" for ending in files if ending not in read)
    return f"{folder}: {' and '.join(read)} files are read, not {', '.join(others)}" if others else ""


def files_of(folder: Path) -> list[Path]:
    """The text files in ``folder`` and the folders in it, in order. Raise a `UserError` if there is
    none, or there are fewer than their names say, such as train-00003-of-00010.parquet."""
    files, read = _by_ending(folder)
    paths = sorted(chain.from_iterable(files[ending] for ending in read))
    counted = (_COUNTED.fullmatch(str(path)) for path in paths)
    for (name, number, suffix), there in Counter(match.groups() for match in counted if match).items():
        if there < int(number):
            raise UserError(
                f"{name}-*-of-{number}{suffix}: only {there} of {int(number)} files are there; fetch "
                "the others, or rename these"
            )
    return paths


def fingerprint(folder: Path) -> str:
    """A hash of the names and sizes of the files in ``folder``, of the first and last bytes of each, and
    of how it is cut into parts: reading all text at each start would take minutes."""
    whole = hashlib.sha256(f"{PART_BYTES} {PARTS}".encode())
    for path in files_of(folder):
        size = path.stat().st_size
        with path.open("rb") as file:
            ends = file.read(_ENDS)
            file.seek(max(0, size - _ENDS))
            ends += file.read(_ENDS)
        name = path.relative_to(folder).as_posix()
        whole.update(f"\n{name} {size} {hashlib.sha256(ends).hexdigest()}".encode())
    return whole.hexdigest()


def parts_of(folder: Path) -> list[Part]:
    """The parts of ``folder``, in order, of about equal size. Raise a `UserError` if a file is cut."""
    pieces = [piece for path in files_of(folder) for piece in _pieces(path)]
    most = max(PART_BYTES, sum(piece.size for piece in pieces) // PARTS)
    parts: list[list[Range]] = []
    size = most
    for piece in pieces:
        if size + piece.size > most:
            parts.append([])
            size = 0
        size += piece.size
        parts[-1].append(piece)
    return [tuple(part) for part in parts]


def _pieces(path: Path) -> Iterator[Range]:
    """Ranges of the file, of at most `PART_BYTES` where it can be cut there."""
    size = path.stat().st_size
    if _ending(path) in (".jsonl.gz", ".txt", ".txt.gz"):  # a .gz file can't be read from its middle
        yield Range(path, 0, sys.maxsize, size * (_UNPACKED if path.suffix == ".gz" else 1))
        return
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            file.seek(max(0, size - 64))
            if file.read().rstrip()[-1:] not in (b"", b"}"):
                raise _damaged(path, "it ends within a line")
        for start in range(0, size, PART_BYTES):
            yield Range(path, start, min(start + PART_BYTES, size), min(PART_BYTES, size - start))
        return
    with _parquet(path) as file:
        for group in range(file.metadata.num_row_groups):
            yield Range(path, group, group + 1, file.metadata.row_group(group).total_byte_size)


def _parquet(path: Path) -> "ParquetFile":
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        # Read pages as they are needed, not whole row groups.
        return ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except (OSError, ArrowException) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(
        f"data file {path} is cut or damaged ({str(reason).splitlines()[0]}); fetch or make it again"
    )
