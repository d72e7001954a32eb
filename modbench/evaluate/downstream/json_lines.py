"""Reads files of items: one JSON object per line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modbench.errors import UserError

Row = dict[str, Any]


def rows_of(file: Path) -> Iterator[tuple[int, Row]]:
    """Yield the objects of ``file``, each with the number of its line; empty lines are skipped. Raises
    UserError: the file can't be read or has no object, or a line is not UTF-8 or not a JSON object."""
    some = False
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror})") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            some = True
            yield number, _row(line, f"{file}, line {number}")
    if not some:
        raise UserError(f"{file} has no items; it must have one JSON object per line")


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode())
        if isinstance(row, dict):
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
            return row
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 (byte {error.object[error.start]:#x} at {error.start + 1}); save the "
            "file as UTF-8"
        ) from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has half of a surrogate pair (\\uD800 to \\uDFFF); fix it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); it must be one JSON object") from error
    raise UserError(f"{where} is not a JSON object; it must be {{...}} with the fields of an item")
