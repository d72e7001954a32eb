"""Documents: what a corpus consists of, and how it is split, cut and put in order."""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A piece of text that stands alone; ``name`` is unique within its corpus and decides its place."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The two sides of a split, each in the order in which it is read."""

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]


def fraction(text: str) -> float:
    """A number in [0, 1) that ``text`` alone decides: the same on every machine, spread evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def in_pieces(documents: Iterable[Document], *, size: int = 8192) -> tuple[Document, ...]:
    """The documents cut at blank lines into pieces of about ``size`` characters, in an order by hash.

    A small run reads only a part of the text and a small evaluation only a part of the held-out part:
    with pieces in hashed order every part is a fair mixture of the sources.
    """
    pieces = []
    for document in documents:
        for number, text in enumerate(_cut(document.text, size)):
            pieces.append(Document(f"{document.name}#{number}", text))
    return tuple(sorted(pieces, key=lambda piece: hashlib.sha256(piece.name.encode()).digest()))


def _cut(text: str, size: int) -> list[str]:
    pieces: list[str] = []
    current: list[str] = []
    length = 0
    for paragraph in text.split("\n\n"):
        if current and length + len(paragraph) > size:
            pieces.append("\n\n".join(current))
            current, length = [], 0
        current.append(paragraph)
        length += len(paragraph) + 2
    return [*pieces, "\n\n".join(current)]


def split_by_hash(documents: Iterable[Document], share: float) -> Corpus:
    """Hold out ``share`` of the distinct texts, at least one: those with the smallest hash.

    The hash is the text's, so equal texts always lie on one side.

    Raises:
        ValueError: fewer than two distinct texts.
    """
    documents = tuple(documents)
    keys = sorted({_text_key(document) for document in documents})
    if len(keys) < 2:
        raise ValueError("a split needs two distinct documents")
    count = min(max(1, math.ceil(share * len(keys))), len(keys) - 1)
    out = set(keys[:count])
    return Corpus(
        train=tuple(document for document in documents if _text_key(document) not in out),
        heldout=tuple(document for document in documents if _text_key(document) in out),
    )


def _text_key(document: Document) -> bytes:
    return hashlib.sha256(document.text.encode()).digest()


def word_ngrams(text: str, n: int) -> set[int]:
    """Hashes of the runs of ``n`` words in ``text``, case and punctuation aside, for leak checks."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {hash(tuple(words[at : at + n])) for at in range(len(words) - n + 1)}
