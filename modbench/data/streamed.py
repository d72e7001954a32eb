"""Prepares a text that may not fit in memory: several processes make a shard of tokens from each part of
a folder. A start that was stopped leaves its finished shards, and the next one makes the others."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from modbench.data.cache_folder import put, writable
from modbench.data.config import DataConfig
from modbench.data.corpus import is_folder
from modbench.data.documents import fraction
from modbench.data.hub_text import fetch
from modbench.data.shards import Shard, write_shard, written_shard
from modbench.data.text_folder import Part, left_out, parts_of
from modbench.data.tokenizer import Tokenizer, tokenizer_for, tokenizer_of
from modbench.errors import UserError, several

#: Most characters of training text, from the starts of all parts, on which a bpe is trained: with
#: 32,768 ids this takes a minute and 0.5 GB.
SAMPLE = 2**26
#: More documents of a Hugging Face data set than these, about 1e8 tokens, are streamed. Fewer are held
#: in memory and split as they always were: records name their tokens.
MOST_IN_MEMORY = 100_000

Say = Callable[[str], None]


def is_streamed(config: DataConfig) -> bool:
    """Return True if the text of ``config`` is never in memory as a whole."""
    if config.source == "huggingface":
        return config.documents > MOST_IN_MEMORY
    return is_folder(config)


def make_shards(
    config: DataConfig, folder: Path, say: Say, processes: int | None
) -> tuple[Tokenizer, list[Shard]]:
    """Make the shards of ``config`` that are not yet in ``folder``; return the tokenizer and all shards.
    The caller holds the lock of the folder. Raise a `UserError` if the text can't be read, a side of
    the split has none, or the folder can't be written."""
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()
    text = Path(str(config.path)) if config.source == "text" else fetch(config, folder, say)
    if config.source == "text" and (sentence := left_out(text)):
        say(sentence)
    parts = parts_of(text)
    tokenizer = _tokenizer(config, parts, folder, say)
    shards = {number: written_shard(folder, _name(number)) for number in range(len(parts))}
    left = [number for number, shard in shards.items() if shard is None]
    if left:
        processes = min(processes or _cores(), len(left))
        size = sum(piece.size for number in left for piece in parts[number])
        say(
            f"tokenizing {size / 1e9:.3g} GB of text in {several(len(left), 'part')} with "
            f"{several(processes, 'process')}"
        )
        with _pool(processes) as pool:
            of_future = {
                pool.submit(
                    _write, folder, _name(number), parts[number], config, tokenizer.stored()
                ): number
                for number in left
            }
            for future in as_completed(of_future):
                shards[of_future[future]] = future.result()
                done = sum(shard is not None for shard in shards.values())
                if done * 10 // len(parts) > (done - 1) * 10 // len(parts):
                    say(f"{done} of {several(len(parts), 'part')} tokenized")
    made = [shard for shard in shards.values() if shard is not None]
    for side, tokens in (
        ("training", sum(shard.train_tokens for shard in made)),
        ("held-out", sum(shard.heldout_tokens for shard in made)),
    ):
        if not tokens:
            raise UserError(
                f"the text of {config.path or config.name} has no {side} document with data heldout = "
                f"{config.heldout:g}; give more documents, or change it"
            )
    return tokenizer, made


def _name(number: int) -> str:
    return f"{number:05}.tokens"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tokenizer(config: DataConfig, parts: Sequence[Part], folder: Path, say: Say) -> Tokenizer:
    """The tokenizer of ``config``; a bpe is trained once, also if the start is stopped later."""
    path = folder / "merges.json"
    if path.is_file():
        return tokenizer_of({"merges": json.loads(path.read_bytes())}, str(path))
    if config.tokenizer == "bpe":
        say(f"training the tokenizer on up to {SAMPLE:,} characters")
    tokenizer = tokenizer_for(config, _sample(config, parts))
    if config.tokenizer == "bpe":
        put(path, json.dumps(tokenizer.merges).encode())
    return tokenizer


def _sample(config: DataConfig, parts: Sequence[Part]) -> Iterator[str]:
    """Training texts from the start of each part, `SAMPLE` characters in all at most."""
    for part in parts:
        left = SAMPLE // len(parts)
        for text in (text for piece in part for text in piece.texts(config.text_field)):
            if fraction(text) >= config.heldout:
                yield text[:left]
                left -= len(text)
            if left <= 0:
                break


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, however it ends. Raise a `UserError` if one was killed."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_start) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a process that tokenizes was killed, maybe for want of memory; run `modbench data "
                    "prepare` with fewer --processes, which continues"
                ) from None
            raise


def _start() -> None:
    """Prepare a process of the pool: it uses one core, and ends with the process that started it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write(folder: Path, name: str, part: Part, config: DataConfig, stored: dict[str, object]) -> Shard:
    tokenizer = tokenizer_of(stored, f"data tokenizer '{config.tokenizer}'")
    texts = (text for piece in part for text in piece.texts(config.text_field))
    return write_shard(folder, name, texts, tokenizer, config.heldout)
