"""Token ids in shards, a file each: its training tokens, then its held-out tokens. A shard holds whole
documents; those of one part of the text.

N tokens.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from modbench.data.cache_folder import put, writable
from modbench.data.documents import fraction
from modbench.data.tokenizer import Tokenizer

#: Most documents and characters tokenized at a time; they take about 100 MB.
_DOCUMENTS, _CHARACTERS = 1000, 2**22


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of token ids, 2 bytes each."""

    name: str
    train_tokens: int
    heldout_tokens: int
    sha256: str
    skipped: int = 0  #: documents without text

    @property
    def bytes(self) -> int:
        return 2 * (self.train_tokens + self.heldout_tokens)

    def header(self) -> dict[str, object]:
        """The fields that the hash of the tokens covers."""
        return {name: value for name, value in asdict(self).items() if name != "skipped"}


class ShardedTokens:
    """Token ids that lie in several arrays, as one after another: has a length and slices, which are
    arrays. A slice within one array is a view of it."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        # Slices of a memmap, a subclass, take several times as long.
        self.arrays = [np.asarray(array) for array in arrays if len(array)]
        self.ends = [*accumulate(map(len, self.arrays))]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, step = window.indices(len(self))
        assert step == 1, "only slices of adjacent tokens are supported"
        first = bisect_right(self.ends, start)
        if start < stop <= self.ends[first]:
            begin = self.ends[first] - len(self.arrays[first])
            return self.arrays[first][start - begin : stop - begin]
        pieces = [np.zeros(0, dtype="<u2")]
        for array, end in zip(self.arrays[first:], self.ends[first:], strict=True):
            begin = end - len(array)
            pieces.append(array[max(0, start - begin) : max(0, stop - begin)])
            if stop <= end:
                break
        return np.concatenate(pieces)


#: Token ids of a text; ``len`` and slices are what both have.
Tokens = np.ndarray | ShardedTokens


def open_shards(
    folder: Path, shards: Iterable[Shard], *, verify: bool
) -> tuple[ShardedTokens, ShardedTokens]:
    """Training and held-out tokens, mapped from the files. Raise a `ValueError` if a file is missing,
    has another size or, with ``verify``, another content."""
    train, heldout = [], []
    for shard in shards:
        check(folder, shard, content=verify)
        # An empty file can't be mapped.
        tokens_N = np.memmap(folder / shard.name, "<u2", "r") if shard.bytes else np.zeros(0, "<u2")
        train.append(tokens_N[: shard.train_tokens])
        heldout.append(tokens_N[shard.train_tokens :])
    return ShardedTokens(train), ShardedTokens(heldout)


def check(folder: Path, shard: Shard, *, content: bool = True) -> None:
    """Raise a `ValueError` if the file of ``shard`` has another size or, with ``content``, sha256 than
    was written."""
    path = folder / shard.name
    size = path.stat().st_size if path.is_file() else None
    if size != shard.bytes:
        found = "is missing" if size is None else f"has {size:,} of {shard.bytes:,} bytes"
        raise ValueError(f"shard {folder.name}/{shard.name} {found}")
    if content and _sha256(path, path.stat().st_mtime_ns) != shard.sha256:
        raise ValueError(f"shard {folder.name}/{shard.name} has another sha256")


@lru_cache(maxsize=1024)  # a command prepares its text several times
def _sha256(path: Path, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def written_shard(folder: Path, name: str) -> Shard | None:
    """The shard ``name`` of an earlier start; None if it is not there, whole."""
    try:
        shard = Shard(**json.loads((folder / f"{name}.json").read_bytes()))
        check(folder, shard)
    except (OSError, ValueError):
        return None
    return shard


def write_shard(
    folder: Path, name: str, texts: Iterable[str], tokenizer: Tokenizer, heldout: float
) -> Shard:
    """Tokenize ``texts`` into the shard ``name``: those with a hash below ``heldout`` are held out, and
    blank ones are skipped. A process killed at any moment leaves no part of a shard that a later
    start would use. Raise a `UserError` if the folder can't be written."""
    temporary = folder / f"{name}.{os.getpid()}.part"
    digest = hashlib.sha256()
    train_tokens = skipped = 0
    heldout_N = [np.zeros(0, "<u2")]
    with writable(folder), temporary.open("wb") as file:
        for every in _batches(texts):
            sides: tuple[list[str], list[str]] = ([], [])
            for text in every:
                if text.strip():
                    sides[fraction(text) < heldout].append(text)
            skipped += len(every) - sum(map(len, sides))
            train_N, out_N = map(tokenizer.stream, sides)
            heldout_N.append(out_N)
            train_tokens += len(train_N)
            digest.update(train_N.data)
            file.write(train_N.data)
        last_N = np.concatenate(heldout_N)
        digest.update(last_N.data)
        file.write(last_N.data)
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, folder / name)
    shard = Shard(
        name=name,
        train_tokens=train_tokens,
        heldout_tokens=len(last_N),
        sha256=digest.hexdigest(),
        skipped=skipped,
    )
    put(folder / f"{name}.json", json.dumps(asdict(shard)).encode())
    return shard


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _DOCUMENTS or characters > _CHARACTERS:
            yield batch
            batch = []
            characters = 0
    yield batch
