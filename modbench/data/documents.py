"""Documents of a corpus, and how they are split, cut and ordered."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modbench.errors import UserError, known_names, several


@dataclass(frozen=True)
class Document:
    """A text; ``name`` is unique in its corpus and determines its place."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents, in reading order."""

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]


def text_of(row: Mapping[str, Any], field: str, where: object) -> str:
    """The text of a row; messages name ``where`` it lies. Raise a `UserError` if ``field`` holds no text
    that UTF-8 can encode."""
    value = row.get(field)
    if not isinstance(value, str) or not _is_utf8(value):
        known = known_names(field, map(str, row))
        other = "" if field in row else f", or set data text_field ({known})"
        raise UserError(f"{where} has no UTF-8 text in field '{field}'; fix or remove it{other}")
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a surrogate without its other half
        return False
    return True


def json_row(line: str | bytes, where: object) -> dict[str, Any]:
    """The object in a line of JSON. Raise a `UserError` if it holds none."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is not a JSON object ({error}); fix or remove the line") from None


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def fraction(text: str) -> float:
    """A hash of ``text`` as a number in [0, 1), uniform and equal on every machine."""
    return int.from_bytes(digest(text)[:8], "big") / 2**64


def in_pieces(documents: Iterable[Document], *, size: int = 8192) -> tuple[Document, ...]:
    """Cut documents at blank lines into pieces of about ``size`` characters, ordered by hash: every part
    of the text, as a small run reads it, is a fair mixture of the sources."""
    pieces = (
        Document(f"{document.name}#{number}", text)
        for document in documents
        for number, text in enumerate(_cut(document.text, size))
    )
    return tuple(sorted(pieces, key=lambda piece: digest(piece.name)))


def _cut(text: str, size: int) -> list[str]:
    pieces: list[str] = []
    current: list[str] = []
    length = 0
    for paragraph in text.split("\n\n"):
        if current and length + len(paragraph) > size:
            pieces.append("\n\n".join(current))
            current = []
            length = 0
        current.append(paragraph)
        length += len(paragraph) + 2
    return [*pieces, "\n\n".join(current)]


def split_by_hash(documents: Iterable[Document], share: float, where: str) -> Corpus:
    """Hold out the fraction ``share`` of the distinct texts, at least one: those with the smallest hash.
    Equal texts lie on one side; those without text are dropped. Raise a `UserError`, which names
    ``where`` the documents come from, for fewer than two."""
    hashed = [(digest(document.text), document) for document in documents if document.text.strip()]
    keys = sorted({key for key, _ in hashed})
    if len(keys) < 2:
        raise UserError(
            f"{where} has {several(len(hashed), 'document')} with text, fewer than two different ones; "
            "give more, so that one can be held out"
        )
    out = set(keys[: min(max(1, math.ceil(share * len(keys))), len(keys) - 1)])
    return Corpus(
        train=tuple(document for key, document in hashed if key not in out),
        heldout=tuple(document for key, document in hashed if key in out),
    )
