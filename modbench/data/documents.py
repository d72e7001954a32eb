"""Documents of a corpus, and how they are split, cut and ordered."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
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
    """Texts of the training and held-out documents, in reading order; ``skipped``: documents without
    text."""

    train: Sequence[str]
    heldout: Sequence[str]
    skipped: int = 0


def text_of(row: Mapping[str, Any], field: str) -> str:
    """The text in ``field`` of a row; empty if it holds none that UTF-8 can encode."""
    value = row.get(field)
    try:
        return value if isinstance(value, str) and value.encode() else ""
    except UnicodeEncodeError:  # a surrogate without its other half
        return ""


def no_field(where: object, field: str, known: Iterable[str]) -> UserError:
    """The error of a file or data set without the field of the texts."""
    names = known_names(field, map(str, known))
    return UserError(f"{where} has no field '{field}'; set data text_field ({names})")


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


def split_by_hash(texts: Sequence[str], share: float, where: str) -> Corpus:
    """Hold out the fraction ``share`` of the distinct texts, at least one: those with the smallest hash.
    Equal texts lie on one side; blank ones are skipped. Raise a `UserError`, which names ``where`` the
    texts come from, for fewer than two."""
    hashed = [(digest(text), text) for text in texts if text.strip()]
    keys = sorted({key for key, _ in hashed})
    if len(keys) < 2:
        raise UserError(
            f"{where} has {several(len(hashed), 'document')} with text, fewer than two different ones; "
            "give more, so that one can be held out"
        )
    out = set(keys[: min(max(1, math.ceil(share * len(keys))), len(keys) - 1)])
    return Corpus(
        train=[text for key, text in hashed if key not in out],
        heldout=[text for key, text in hashed if key in out],
        skipped=len(texts) - len(hashed),
    )
