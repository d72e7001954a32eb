"""A local file and a Hugging Face data set: split without leaks, every fault named with its place."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from modbench.data.config import DataConfig
from modbench.data.corpus import read_corpus, text_sha256
from modbench.errors import UserError


def read(tmp_path, **settings):
    return read_corpus(DataConfig(**settings), say=lambda sentence: None)


def texts(corpus):
    return list(corpus.train), list(corpus.heldout)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_tail_of_a_text_file_is_held_out_from_a_line_on(tmp_path):
    lines = "".join(f"line {number}\n" for number in range(1000))
    (tmp_path / "a.txt").write_text(lines)
    (train,), (heldout,) = texts(
        read(tmp_path, source="text", path=str(tmp_path / "a.txt"), heldout=0.1)
    )
    assert train + heldout == lines
    assert train.endswith("\n")
    assert len(heldout) == pytest.approx(len(lines) * 0.1, abs=10)


def test_equal_lines_of_a_jsonl_file_lie_on_one_side(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        [{"body": f"text {number % 50}"} for number in range(100)] + [{"body": " "}],
    )
    train, heldout = texts(read(tmp_path, source="text", path=path, text_field="body", heldout=0.1))
    assert len(set(heldout)) == 5
    assert not set(train) & set(heldout)
    assert len(train) + len(heldout) == 100


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "".join(f"line {number}\n" for number in range(100))),
        ("a.jsonl", "".join(f'{{"text": "line {number}"}}\n' for number in range(100))),
    ],
    ids=["txt", "jsonl"],
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, content):
    settings = {"source": "text", "path": str(tmp_path / name)}
    (tmp_path / name).write_text(content, encoding="utf-8")
    plain, digest = read(tmp_path, **settings), text_sha256(DataConfig(**settings))
    assert digest == hashlib.sha256(content.encode()).hexdigest()
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read(tmp_path, **settings) == plain
    # Or tokens that were kept from when the mark was read as text would be taken.
    assert text_sha256(DataConfig(**settings)) == digest


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.txt", None, "can't be read (No such file or directory)"),
        ("a.txt", b"a\xff\n", "is not UTF-8 (byte 1 of the text)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', ":2 is not a JSON object"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "a"}\n',
            "has 2 documents with text, fewer than two different ones",
        ),
    ],
    ids=["missing", "not-utf8", "not-json", "same"],
)
def test_a_file_that_is_no_corpus_is_named_with_the_place(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path, source="text", path=str(tmp_path / name))
    assert sentence in str(caught.value)
    assert name in str(caught.value)


# The Hugging Face path runs for real, on a folder of files, in a process of its own: `datasets` reads
# its variables once, when it is imported.
STREAM = """
import json, sys
from pathlib import Path
from modbench.errors import UserError
from modbench.data.corpus import read_corpus
from modbench.data.config import DataConfig
for settings in json.loads(sys.argv[1]):
    try:
        corpus = read_corpus(DataConfig(source="huggingface", **settings))
        print(json.dumps([corpus.train, corpus.heldout]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def stream(tmp_path, *settings):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STREAM, json.dumps(settings)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line[0] in '["']


def test_a_data_set_is_streamed_by_name_split_field_and_count(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"body": f"text {number}"} for number in range(90)]
    jsonl(folder / "train-a.jsonl", [{**row, "id": 1} for row in rows[:20]])
    jsonl(folder / "train-b.jsonl", [{**row, "id": {"of": "b"}, "more": 1} for row in rows[20:]])
    jsonl(folder / "validation.jsonl", [{"body": "v 1"}, {"body": "v 2"}])
    name = str(folder)
    some, other, field, split, gone = stream(
        tmp_path,
        {"name": name, "text_field": "body", "documents": 40, "heldout": 0.1},
        {"name": name, "text_field": "body", "split": "validation"},
        {"name": name},
        {"name": name, "split": "test", "text_field": "body"},
        {"name": "nobody/nothing-of-this-name"},
    )
    assert sorted(some[0] + some[1]) == sorted(f"text {number}" for number in range(40))
    assert len(some[1]) == 4
    assert sorted(other[0] + other[1]) == ["v 1", "v 2"]
    assert field == f"data set '{name}' has no field 'text'; set data text_field (known: body, id)"
    assert "split 'test'" in split
    assert "data set 'nobody/nothing-of-this-name'" in gone
    assert "check its name, subset, split and the network" in gone
