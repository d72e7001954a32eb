"""Preparing a large text: tokens per second of a core, and memory that does not grow with the text; and
batches read from shards, against those of one array in memory."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from interleaved import InTurns
from pyarrow import parquet
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach

from modbench.data.batches import Batches
from modbench.data.corpus import read_pypi_en
from modbench.data.shards import ShardedTokens

#: Characters of a document; text of a folder in bytes, and ids of the bpe.
DOCUMENT, TEXT_BYTES, VOCABULARY = 4000, 40_000_000, 8192
#: Sequences and tokens of a batch.
BATCH, SEQUENCE = 32, 1024


def documents() -> Iterator[str]:
    """Passages of the embedded corpus, each with a number, so that no two are equal."""
    texts = [document.text for document in read_pypi_en()[0]]
    random = np.random.default_rng(0)
    number = 0
    while True:
        text = texts[random.integers(len(texts))]
        start = random.integers(max(1, len(text) - DOCUMENT))
        number += 1
        yield f"{number} {text[start : start + DOCUMENT]}"


def write_folder(folder: Path, suffix: str) -> None:
    """Write `TEXT_BYTES` of text, about, in four files."""
    texts = documents()
    folder.mkdir()
    for number in range(4):
        path = folder / f"{number}.{suffix}"
        own = islice(texts, TEXT_BYTES // DOCUMENT // 4)
        if suffix == "jsonl":
            with path.open("w") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in own)
        else:
            parquet.write_table(pa.table({"text": list(own)}), path, row_group_size=1000)


def peak_bytes(process: psutil.Popen) -> int:
    """Peak memory of ``process`` and its children together, until it ends; shared pages count once."""
    peak = 0
    while process.poll() is None:
        total = 0
        for each in (process, *process.children(recursive=True)):
            try:
                total += each.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
        peak = max(peak, total)
        time.sleep(0.1)
    return peak


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_preparing_a_folder(
    suffix: str, benchmark: BenchmarkFixture, reach: Reach, tmp_path: Path
) -> None:
    write_folder(tmp_path / "text", suffix)
    command = f"-m modbench data prepare --source text --vocabulary {VOCABULARY} --processes 1 --path"
    words = [sys.executable, *command.split(), str(tmp_path / "text")]

    cache = tmp_path / "cache"

    def prepared() -> int:
        process = psutil.Popen(words, env={**os.environ, "MODBENCH_CACHE": str(cache)})
        peak = peak_bytes(process)
        assert process.returncode == 0
        return peak

    peak = benchmark.pedantic(prepared, rounds=1, iterations=1)
    (index,) = cache.glob("*.json")
    header = json.loads(index.read_bytes())["header"]
    tokens = header["train_tokens"] + header["heldout_tokens"]
    # Once more with the trained bpe, whose time does not grow with the text.
    for path in (index, *cache.rglob("*.tokens")):
        path.unlink()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    prepared()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of processors, not of the clock, so that other work on the machine does not count.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    what = f"preparing {tokens / 1e6:.3g}e6 tokens from .{suffix}"
    reach.at_least(f"{what}, per second of a core", tokens / seconds / 1e6, 0.2, "e6")
    reach.shown(f"{what}, 1e9 at this rate, on a core", 1e9 / tokens * seconds / 3600, "h")
    reach(f"{what}, peak memory of all processes", peak / 1e6, 1000, "MB")


def test_batches_from_shards(in_turns: InTurns, reach: Reach, tmp_path: Path) -> None:
    whole_N = np.random.default_rng(0).integers(VOCABULARY, size=2**26, dtype="<u2")
    whole_N.tofile(tmp_path / "tokens")
    mapped_N = np.memmap(tmp_path / "tokens", "<u2", "r")
    shards = ShardedTokens(np.array_split(mapped_N, 200))
    texts = {"one array": whole_N, "200 shards": shards}
    ways = {
        name: Batches(text, sequence=SEQUENCE, batch=BATCH, seed=0).step for name, text in texts.items()
    }
    random = np.random.default_rng(1)
    turns = in_turns(ways, lambda: (int(random.integers(2000)),))
    what = f"a batch of {BATCH} x {SEQUENCE} tokens"
    reach.shown(f"{what} from an array in memory", turns.median("one array") * 1e3, "ms")
    reach(f"{what} from 200 mapped shards", turns.median("200 shards") * 1e3, 2, "ms")
