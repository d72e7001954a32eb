"""A folder of text: tokenized in shards by several processes, resumed, and refused if a part of it is
missing or cut."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from modbench.cli.main import main
from modbench.data import streamed, text_folder
from modbench.data.batches import Batches
from modbench.data.documents import fraction
from modbench.data.shards import ShardedTokens
from modbench.data.text_folder import Range, fingerprint, left_out, parts_of
from modbench.data.token_data import DataConfig, TokenData, load, prepare
from modbench.errors import UserError

TEXTS = [f"Document {number} speaks of the king and of the queen, é and 😀." for number in range(300)]


def silent(sentence: str) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four files of 75 documents, which make six parts or more."""
    monkeypatch.setattr(text_folder, "PART_BYTES", 4000)
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.jsonl", "b.jsonl")):
        rows = [{"id": 1, "text": text} for text in TEXTS[75 * number :][:75]]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, name in enumerate(("c.parquet", "more/d.parquet"), start=2):
        table = pa.table({"text": TEXTS[75 * number :][:75], "id": [1] * 75})
        parquet.write_table(table, folder / name, row_group_size=30)
    (folder / "README.md").write_text("not a text")
    return folder


def config_of(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(**{"source": "text", "path": str(folder), "vocabulary": 300, **settings})  # type: ignore[arg-type]


@pytest.fixture
def prepared(folder: Path, tmp_path: Path) -> tuple[DataConfig, Path, TokenData]:
    """The configuration, the cache and the tokens, made by one process."""
    config = config_of(folder)
    return config, tmp_path / "one", prepare(config, cache=tmp_path / "one", say=silent, processes=1)


def documents(data: TokenData, side: str) -> list[str]:
    tokens_N = getattr(data, side)[:]
    ends = np.flatnonzero(tokens_N == data.tokenizer.end_of_text) + 1
    return [data.tokenizer.decode(ids_N[:-1].tolist()) for ids_N in np.split(tokens_N, ends)[:-1]]


def test_every_document_lies_on_the_side_of_its_hash_in_order(
    prepared: tuple[DataConfig, Path, TokenData],
) -> None:
    config, cache, data = prepared
    assert len(list(cache.rglob("*.tokens"))) > 5
    assert documents(data, "train_N") == [text for text in TEXTS if fraction(text) >= config.heldout]
    assert documents(data, "heldout_N") == [text for text in TEXTS if fraction(text) < config.heldout]


def test_two_processes_make_the_same_files_as_one(
    prepared: tuple[DataConfig, Path, TokenData], tmp_path: Path
) -> None:
    config, cache, data = prepared
    assert prepare(config, cache=tmp_path / "two", say=silent, processes=2).sha256 == data.sha256
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert (tmp_path / "two" / path.relative_to(cache)).read_bytes() == path.read_bytes()


def test_a_start_goes_on_with_the_finished_shards_and_makes_the_others(
    prepared: tuple[DataConfig, Path, TokenData], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, cache, data = prepared
    (index,) = cache.glob("*.json")
    first, second, third, *others = sorted(cache.rglob("*.tokens"))
    index.unlink()
    first.unlink()
    second.write_bytes(second.read_bytes()[:-2])
    third.with_name(f"{third.name}.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in others}
    monkeypatch.setattr(streamed, "tokenizer_for", lambda *_: pytest.fail("trained again"))
    assert prepare(config, cache=cache, say=silent, processes=1).sha256 == data.sha256
    assert {path: path.stat().st_mtime_ns for path in others} == before


KILLED = """
import sys
from pathlib import Path
from modbench.data import streamed, text_folder
from modbench.data.token_data import DataConfig, prepare
if __name__ == "__main__":
    text_folder.PART_BYTES = 4000
    config = DataConfig(source="text", path=sys.argv[1], vocabulary=300)
    prepare(config, cache=Path(sys.argv[2]), say=print, processes=1)
"""


def test_a_killed_start_leaves_no_process_and_the_next_one_ends_with_the_same_tokens(
    prepared: tuple[DataConfig, Path, TokenData], tmp_path: Path
) -> None:
    config, _, data = prepared
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    cache = tmp_path / "killed"
    command = [sys.executable, str(program), str(config.path), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while not list(cache.rglob("*.tokens")):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.read()  # ends only when no process holds the other end
    with pytest.raises(UserError, match="is not prepared"):
        load(config, cache=cache)
    assert prepare(config, cache=cache, say=silent, processes=1).sha256 == data.sha256


def test_ranges_of_a_file_hold_every_line_once_wherever_they_are_cut(folder: Path) -> None:
    path = folder / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")
    size = path.stat().st_size
    whole = list(Range(path, 0, size, size).texts("text"))
    assert whole == TEXTS[:75]
    for cut in range(80, 400):
        halves = Range(path, 0, cut, cut), Range(path, cut, size, size)
        assert [text for half in halves for text in half.texts("text")] == whole


def test_the_hash_of_a_folder_of_lines_is_that_of_earlier_versions(folder: Path) -> None:
    for path in folder.rglob("*.parquet"):  # whose bytes depend on the version of pyarrow
        path.write_bytes(b"not read")
    (folder / "e.txt").write_text("not a document")
    (folder / "f.jsonl.gz").write_bytes(b"not read")
    assert fingerprint(folder) == "ba79ee506d5035faf40e55a4c0c2deb2a96c888e1575adda70030cfc9e1dc094"


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".jsonl.gz"])
def test_folders_of_other_files_have_their_documents_in_order(ending: str, tmp_path: Path) -> None:
    texts, folder = TEXTS[:60], tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    lines = ending == ".jsonl.gz"
    contents = [json.dumps({"text": text}) + "\n" for text in texts] if lines else texts
    each = 20 if lines else 1
    for start in range(0, len(texts), each):
        content = "".join(contents[start : start + each]).encode("utf-8-sig")
        path = folder / ("more" if start > 30 else ".") / f"{start:02}{ending}"
        path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    (folder / "README.md").write_text("not a text")
    said: list[str] = []
    config = config_of(folder)
    data = prepare(config, cache=tmp_path / "cache", say=said.append, processes=1)
    for side, out in (("train_N", False), ("heldout_N", True)):
        of_side = [text for text in texts if (fraction(text) < config.heldout) is out]
        assert of_side
        assert documents(data, side) == of_side
    assert f"{folder}: {ending} files are read, not .md" in said


def test_documents_and_documents_packed_are_both_read(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(TEXTS[1])
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXTS[0].encode()))
    read = [text for part in parts_of(tmp_path) for piece in part for text in piece.texts("text")]
    assert read == TEXTS[:2]
    assert left_out(tmp_path) == ""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "file"])
def test_rows_without_text_are_skipped_and_counted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the types of their other fields."""
    without: list[object] = [None, "", " \n", *([] if name == "a.parquet" else [7, ["a"], "\ud800"])]
    rows: list[dict[str, object]] = [{"text": text, "id": 1} for text in TEXTS[:40]]
    rows[10:10] = [{"text": value, "id": "b"} for value in without]
    if name != "a.parquet":
        rows[0:0] = [{"id": {"of": "no text"}}]
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    path = folder / ("a.jsonl" if name == "file" else name)
    if name == "a.parquet":
        parquet.write_table(pa.table({"text": [row["text"] for row in rows]}), path)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    config = config_of(path if name == "file" else folder, tokenizer="bytes", vocabulary=257)
    for data in (prepare(config, say=silent, processes=1), load(config)):
        read = documents(data, "train_N") + documents(data, "heldout_N")
        assert sorted(read) == sorted(TEXTS[:40])
        assert data.skipped == len(rows) - 40
    command = ["data", "prepare", "--source", "text", "--path", str(config.path)]
    assert main([*command, "--tokenizer", "bytes"]) == 0
    assert f"; skipped {len(rows) - 40} documents without text\n" in capsys.readouterr().out


def test_a_changed_folder_is_another_text(prepared: tuple[DataConfig, Path, TokenData]) -> None:
    config, cache, _ = prepared
    with (Path(str(config.path)) / "b.jsonl").open("a") as file:
        file.write('{"text": "One more document."}\n')
    with pytest.raises(UserError, match="is not prepared, or has changed since"):
        load(config, cache=cache)


def test_a_shard_that_is_missing_is_refused_and_made_again(
    prepared: tuple[DataConfig, Path, TokenData],
) -> None:
    config, cache, data = prepared
    (index,) = cache.glob("*.json")
    (shard,) = cache.rglob("00002.tokens")
    shard.unlink()
    with pytest.raises(UserError, match=f"00002.tokens is missing.*; delete {index}"):
        load(config, cache=cache)
    index.unlink()
    assert prepare(config, cache=cache, say=silent, processes=1).sha256 == data.sha256


def test_a_shard_with_another_token_is_refused_by_prepare(
    prepared: tuple[DataConfig, Path, TokenData],
) -> None:
    config, cache, _ = prepared
    (shard,) = cache.rglob("00002.tokens")
    content = shard.read_bytes()
    shard.write_bytes(content[:10] + bytes([content[10] ^ 1]) + content[11:])
    with pytest.raises(UserError, match=r"00002.tokens has another sha256"):
        prepare(config, cache=cache, say=silent)


def cut(path: Path, bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-bytes])


def only(folder: Path, name: str, content: bytes) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda folder: cut(folder / "b.jsonl", 20),
            "b.jsonl is cut or damaged (it ends within a line)",
        ),
        (
            lambda folder: (folder / "c.parquet").rename(folder / "c-00001-of-00003.parquet"),
            "c-*-of-00003.parquet: only 1 of 3 files are there; fetch the others",
        ),
        (
            lambda folder: only(folder, "a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9]),
            "a.jsonl.gz is cut or damaged (Compressed file ended",
        ),
        (
            lambda folder: only(folder, "a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text"\n')),
            "a.jsonl.gz:2 is not a JSON object",
        ),
        (lambda folder: only(folder, "a.txt", b"a\xff"), "a.txt is not UTF-8 (byte 1 of the text)"),
        (
            lambda folder: (folder / "b.jsonl").write_text("[" * 10**5 + "\n" + "{}"),
            "b.jsonl:1 is not a JSON object",
        ),
        (
            lambda folder: (folder / "b.jsonl").write_text('{"txt": "a"}\n'),
            "b.jsonl has no field 'text'; set data text_field (did you mean 'txt'? known: txt)",
        ),
    ],
    ids=["cut-jsonl", "missing", "cut-gz", "not-json-gz", "not-utf8", "nested", "no-field"],
)
def test_a_file_that_is_missing_or_cut_is_named_in_one_sentence(
    folder: Path, change, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    change(folder)
    monkeypatch.setenv("MODBENCH_CACHE", str(folder.parent / "cache"))
    command = ["data", "prepare", "--source", "text", "--path", str(folder), "--tokenizer", "bytes"]
    assert main([*command, "--processes", "1"]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_a_folder_without_texts_and_a_split_without_a_side_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty' is a folder without .jsonl or .parquet or .jsonl.gz or"
    ):
        prepare(config_of(tmp_path / "empty"), cache=tmp_path / "cache", say=silent)
    config = config_of(folder, heldout=1e-9, tokenizer="bytes", vocabulary=257)
    with pytest.raises(UserError, match="has no held-out document with data heldout = 1e-09; give more"):
        prepare(config, cache=tmp_path / "cache", say=silent, processes=1)


def test_the_fingerprint_sees_names_sizes_and_both_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_folder, "_ENDS", 10)
    path = folder / "a.jsonl"
    content = path.read_bytes()
    seen = {fingerprint(folder)}
    for changed in (b"x" + content[1:], content[:-1] + b" ", content + b" "):
        path.write_bytes(changed)
        seen.add(fingerprint(folder))
    path.rename(folder / "e.jsonl")
    assert len(seen | {fingerprint(folder)}) == 5


def test_sharded_tokens_are_read_as_one_array() -> None:
    whole_N = np.arange(100, dtype="<u2")
    tokens = ShardedTokens([whole_N[:7], whole_N[7:7], whole_N[7:8], whole_N[8:60], whole_N[60:]])
    assert len(tokens) == 100
    for start in range(0, 101, 3):
        for stop in range(start, 101):
            assert np.array_equal(tokens[start:stop], whole_N[start:stop])
    assert np.array_equal(tokens[-5:], whole_N[-5:])
    assert np.shares_memory(tokens[10:50], whole_N)
    for step in range(20):
        settings = {"sequence": 6, "batch": 2, "seed": 0}
        inputs_BT, _ = Batches(tokens, **settings).step(step)
        assert inputs_BT.equal(Batches(whole_N, **settings).step(step)[0])
