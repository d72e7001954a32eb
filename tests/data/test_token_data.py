"""Token data: prepared once, verified at every start, never half-used."""

import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

from modbench.data import token_data
from modbench.data.token_data import DataConfig, load, prepare
from modbench.errors import UserError


def silent(sentence: str) -> None:
    pass


@pytest.fixture
def config(tmp_path):
    rows = [
        {"text": f"Document {number} speaks of the king and of the queen, é and 😀."}
        for number in range(200)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(source="text", path=str(path), vocabulary=300)


@pytest.fixture
def prepared(config, tmp_path):
    """The configuration, its cache and its token file."""
    cache = tmp_path / "cache"
    prepare(config, cache=cache, say=silent)
    (path,) = cache.glob("*.json")
    return config, cache, path


def test_streams_are_the_documents_each_followed_by_end_of_text(prepared):
    config, cache, _ = prepared
    data = load(config, cache=cache)
    lengths = [
        int((side == data.tokenizer.end_of_text).sum()) for side in (data.train_N, data.heldout_N)
    ]
    assert lengths == [190, 10]
    for side in (data.train_N, data.heldout_N):
        assert side.dtype == np.uint16
        assert side[-1] == data.tokenizer.end_of_text
        assert not side.flags.writeable
    ends = np.flatnonzero(data.heldout_N == data.tokenizer.end_of_text) + 1
    pieces = np.split(data.heldout_N, ends)[:-1]
    documents = [data.tokenizer.decode(ids_N.tolist()) for ids_N in pieces]
    assert len(documents) == 10
    assert data.token_bytes_V[data.heldout_N].sum() == sum(len(text.encode()) for text in documents)
    assert data.token_bytes_V.shape == (300,)
    assert data.token_bytes_V[data.tokenizer.end_of_text] == 0
    assert data.tokenizer.encode(documents[3]) == pieces[3][:-1].tolist()


def test_a_second_start_reads_no_text(monkeypatch, prepared):
    config, cache, _ = prepared
    monkeypatch.setattr(
        token_data, "read_corpus", lambda *a, **k: pytest.fail("the text was read again")
    )
    assert prepare(config, cache=cache, say=silent).sha256 == load(config, cache=cache).sha256


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize(
    "change",
    [cut, flip],
    ids=["cut", "one-bit"],
)
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_an_altered_file_is_refused_by_name_and_rebuilt_when_deleted(prepared, change, suffix):
    config, cache, path = prepared
    file = path.with_suffix(suffix)
    whole = file.read_bytes()
    altered = change(whole)
    file.write_bytes(altered)
    for start in (load, lambda config, cache: prepare(config, cache=cache, say=silent)):
        with pytest.raises(UserError) as caught:
            start(config, cache=cache)
        assert f"; delete {path} and run `modbench data prepare`" in str(caught.value)
    assert file.read_bytes() == altered
    path.unlink()
    prepare(config, cache=cache, say=silent)
    assert file.read_bytes() == whole


def test_a_file_that_is_not_the_pinned_one_is_refused(monkeypatch, prepared):
    config, cache, path = prepared
    monkeypatch.setattr(token_data, "PINNED", {("text", "bpe", 300): "0" * 64})
    with pytest.raises(UserError, match=rf"has sha256 .*, not 0{{64}}\); delete {path}"):
        load(config, cache=cache)


def test_a_changed_text_file_is_another_corpus(prepared):
    config, cache, _ = prepared
    with open(config.path, "a") as file:
        file.write('{"text": "One more document."}\n')
    with pytest.raises(UserError, match="is not prepared"):
        load(config, cache=cache)
    prepare(config, cache=cache, say=silent)
    assert len(list(cache.glob("*.json"))) == 2


def _prepare(config, cache, start, results):
    start.wait()
    results.put(prepare(config, cache=cache, say=silent).sha256)


def test_processes_that_prepare_at_once_agree(config, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Event(), spawn.Queue()
    workers = [
        spawn.Process(target=_prepare, args=(config, tmp_path / "c", start, results)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    start.set()
    hashes = {results.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    assert hashes == {load(config, cache=tmp_path / "c").sha256}
    assert {path.suffix for path in (tmp_path / "c").iterdir()} == {".json", ".npy", ".lock"}


DIE = """
import os, sys
from modbench.data import cache_folder as cache
from modbench.data.token_data import DataConfig, prepare
cache.os.replace = lambda *names: os._exit(9)
prepare(DataConfig(source="text", path=sys.argv[1], vocabulary=300), cache=cache.Path(sys.argv[2]))
"""


def test_a_process_killed_before_the_end_leaves_nothing_that_is_used(config, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DIE, config.path, str(tmp_path / "c")], capture_output=True
    )
    assert done.returncode == 9
    assert list((tmp_path / "c").glob("*.part"))
    with pytest.raises(UserError, match="is not prepared"):
        load(config, cache=tmp_path / "c")
    prepare(config, cache=tmp_path / "c", say=silent)
    assert load(config, cache=tmp_path / "c").sha256
