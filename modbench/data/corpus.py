"""Reads text from one of three sources: embedded corpus, local file, Hugging Face data set."""

import codecs
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modbench.data import pypi_corpus
from modbench.data.config import DataConfig
from modbench.data.documents import Corpus, Document, split_by_hash
from modbench.errors import UserError, known_names, several


def read_corpus(config: DataConfig, *, say: Callable[[str], None] = print) -> Corpus:
    """Read the text of ``config``, split into a training and a held-out part. ``say`` is called with a
    sentence before each long step. Raise a `UserError` if the text is missing, empty, out of reach, or
    too short to be split."""
    if config.source == "text":
        return _read_text(config)
    if config.source == "huggingface":
        return split_by_hash(
            _stream_huggingface(config, say), config.heldout, f"data set '{config.name}'"
        )
    return pypi_corpus.read()


def text_sha256(config: DataConfig) -> str | None:
    """The sha256 of the local text file without a byte-order mark; None for other sources. Raise a
    `UserError` if there is no such file."""
    if config.source != "text":
        return None
    return hashlib.sha256(_text_bytes(config)).hexdigest()


def _text_bytes(config: DataConfig) -> bytes:
    """The content of the local text file without a byte-order mark."""
    path = Path(str(config.path))
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"data path '{path}' ends with '{path.suffix}'; a .txt or a .jsonl file can be read"
        )
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(
            f"data path '{path}' can't be read ({error.strerror}); give the path of a text file"
        ) from None


def _read_text(config: DataConfig) -> Corpus:
    try:
        text = _text_bytes(config).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"data path '{config.path}' is not UTF-8 (byte {error.start} of the text); convert it first"
        ) from None
    if str(config.path).endswith(".jsonl"):
        return split_by_hash(_jsonl_documents(text, config), config.heldout, f"file '{config.path}'")
    return _split_tail(text, config)


def _split_tail(text: str, config: DataConfig) -> Corpus:
    """Hold out the tail, from the first line that starts in the last fraction of the text."""
    cut = text.find("\n", int(len(text) * (1 - config.heldout))) + 1
    if not cut or not text[:cut].strip() or not text[cut:].strip():
        raise UserError(
            f"file '{config.path}' has no text on both sides of a line break near the last "
            f"{config.heldout:g} of it, which is held out; give more lines, or change data heldout"
        )
    return Corpus(train=(Document("head", text[:cut]),), heldout=(Document("tail", text[cut:]),))


def _jsonl_documents(text: str, config: DataConfig) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{config.path}:{number} is not a JSON object ({error}); fix or remove the line"
            ) from None
        yield Document(str(number), _field(row, config, f"{config.path}:{number}"))


def _field(row: dict[str, Any], config: DataConfig, where: str) -> str:
    value = row.get(config.text_field)
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        raise UserError(
            f"{where} has no UTF-8 text in field '{config.text_field}'; fix or remove it, or set data "
            f"text_field ({known_names(config.text_field, map(str, row))})"
        )
    return value


def _stream_huggingface(config: DataConfig, say: Callable[[str], None]) -> Iterator[Document]:
    import datasets

    where = f"data set '{config.name}'"
    say(f"streaming {several(config.documents, 'document')} of {where}")
    # Streaming raises errors of the transport, the hub's client and parsers; all have the same remedy.
    try:
        stream = datasets.load_dataset(
            config.name, config.subset, split=config.split, revision=config.revision, streaming=True
        )
        rows = list(itertools.islice(stream, config.documents))
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or "no message"
        raise UserError(
            f"{where} (subset {config.subset}, split '{config.split}') can't be read "
            f"({type(error).__name__}: {reason}); check its name, subset, split and the network, or set "
            f"source = '{pypi_corpus.NAME}'"
        ) from error
    for number, row in enumerate(rows):
        yield Document(str(number), _field(row, config, f"{where}, document {number}"))
