"""Tokenized training and held-out text: prepared once, kept in the cache, verified whenever it is
loaded. On disk, NAME.npy holds the token ids, or files in the folder NAME those of a text that is
streamed; NAME.json holds the header and the sha256 of both.

N tokens, V vocabulary.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from modbench.data.cache_folder import cache_folder, file_lock, put
from modbench.data.config import DataConfig
from modbench.data.corpus import read_corpus, text_sha256
from modbench.data.shards import Shard, Tokens, open_shards
from modbench.data.streamed import is_streamed, make_shards
from modbench.data.tokenizer import Tokenizer, tokenizer_for, tokenizer_of
from modbench.errors import UserError

__all__ = ["DataConfig", "TokenData", "is_prepared", "load", "prepare"]

#: sha256 of the tokens that are the same on every machine, by (source, tokenizer, vocabulary).
PINNED: dict[tuple[str, str, int], str] = {
    ("pypi-en-v1", "bpe", 512): "de60595e80aba545c478361d3c76f95785dd6e32c2b1c27d54178a462b3d6763",
    ("pypi-en-v1", "bpe", 2048): "b1b8672780a9d2759f551147326bbf55ce68deeeb475ec32a77c50d4508f01f3",
    ("pypi-en-v1", "bytes", 257): "fdd3bb5913b8935bb6ff898ac714017fcca9083ce8705323e859fe97be1c31d7",
}
PINNED_WITH = "0.23.3"  # the version of tokenizers that gave the pinned tokens

_NONE = np.zeros(0, dtype="<u2")


@dataclass(frozen=True)
class TokenData:
    """A tokenized corpus. The two streams are read-only, mapped from the file: copy what you change."""

    train_N: Tokens  #: uint16; each document is followed by the end-of-text id
    heldout_N: Tokens  #: the same for the held-out part
    token_bytes_V: np.ndarray  #: int64: bytes of text that each token stands for, 0 for end of text
    tokenizer: Tokenizer
    sha256: str  #: of the tokens and what made them
    skipped: int = 0  #: documents without text

    def summary(self) -> dict[str, Any]:
        """The data of a record."""
        return {
            "sha256": self.sha256,
            "train_tokens": len(self.train_N),
            "heldout_tokens": len(self.heldout_N),
        }


def prepare(
    config: DataConfig,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = print,
    processes: int | None = None,
) -> TokenData:
    """Return the tokens of ``config``; build them if they are not in the ``cache`` (by default
    `cache_folder`). ``say`` is called with a sentence before each long step. ``processes``: number of
    those that tokenize a streamed text, by default one per core. Raise a `UserError` if the text can't
    be read, the cache can't be written, a file in it was altered, or the result is not the pinned one;
    nothing is left in the cache then but finished shards, with which a later call goes on."""
    cache = cache or cache_folder()
    path = _token_path(config, cache)
    if not path.exists():
        with file_lock(path, say):
            # Another process may have built it while this one waited.
            if not path.exists():
                _build(config, path, say, processes)
    return _load(config, path, verify=True)


def is_prepared(config: DataConfig) -> bool:
    """Return True if the tokens of ``config`` are in the cache. Raise a `UserError` if there is no such
    text file."""
    return _token_path(config, cache_folder()).exists()


def load(config: DataConfig, *, cache: Path | None = None) -> TokenData:
    """Return the tokens of ``config`` from the cache, verified; of shards only the sizes: `prepare`
    verifies them. Raise a `UserError` if they are not there, or a file was altered."""
    return _load(config, _token_path(config, cache or cache_folder()), verify=False)


def _load(config: DataConfig, path: Path, *, verify: bool) -> TokenData:
    try:
        document = json.loads(path.read_bytes())
        header = document["header"]
        shards = [Shard(**shard) for shard in header.get("shards", ())]
        tokens_N = _NONE if shards else np.load(path.with_suffix(".npy"), mmap_mode="r")
        sha256 = _content_sha256(header, tokens_N)
        for right in (document["sha256"], PINNED.get(_pin_key(config), sha256)):
            if sha256 != right:
                raise ValueError(f"it has sha256 {sha256}, not {right}")
        train_N, heldout_N = tokens_N[: header["train_tokens"]], tokens_N[header["train_tokens"] :]
        if shards:
            train_N, heldout_N = open_shards(path.with_suffix(""), shards, verify=verify)
    except FileNotFoundError:
        changed = ", or has changed since" if config.source == "text" else ""
        raise UserError(
            f"corpus '{config.source}' is not prepared{changed} ({path} is missing); run `modbench data "
            "prepare` with the settings of its suite"
        ) from None
    except Exception as error:  # one flipped bit may raise nearly any of them
        raise UserError(
            f"the token files of corpus '{config.source}' were altered ({error}); delete {path} and "
            "run `modbench data prepare` with the settings of its suite"
        ) from None
    tokenizer = tokenizer_of(header, f"the tokenizer in {path}")
    return TokenData(
        train_N=train_N,
        heldout_N=heldout_N,
        token_bytes_V=np.array([len(piece) for piece in tokenizer.pieces], dtype=np.int64),
        tokenizer=tokenizer,
        sha256=sha256,
        skipped=document.get("skipped", 0),
    )


def _header(config: DataConfig) -> dict[str, object]:
    """Settings that determine the tokens; their hash is part of the file's name."""
    return {"config": config.settings(), "text_sha256": text_sha256(config)}


def _pin_key(config: DataConfig) -> tuple[str, str, int]:
    tokenizer = "file" if config.has_tokenizer_file else config.tokenizer
    return config.source, tokenizer, config.vocabulary


def _token_path(config: DataConfig, cache: Path) -> Path:
    written = json.dumps(_header(config), sort_keys=True).encode()
    name = "-".join(map(str, (*_pin_key(config), hashlib.sha256(written).hexdigest()[:12])))
    return cache / f"{name}.json"


def _build(config: DataConfig, path: Path, say: Callable[[str], None], processes: int | None) -> None:
    header = _header(config)
    if is_streamed(config):
        tokenizer, shards = make_shards(config, path.with_suffix(""), say, processes)
        tokens_N = _NONE
        header |= {
            "train_tokens": sum(shard.train_tokens for shard in shards),
            "heldout_tokens": sum(shard.heldout_tokens for shard in shards),
            "shards": [shard.header() for shard in shards],
        }
        skipped = sum(shard.skipped for shard in shards)
    else:
        corpus = read_corpus(config, say=say)
        sides, skipped = (corpus.train, corpus.heldout), corpus.skipped
        characters = sum(len(text) for texts in sides for text in texts)
        say(f"tokenizing {characters:,} characters of {config.source}")
        tokenizer = tokenizer_for(config, corpus.train)
        train_N, heldout_N = (tokenizer.stream(texts) for texts in sides)
        tokens_N = np.concatenate([train_N, heldout_N])
        header |= {"train_tokens": len(train_N), "heldout_tokens": len(heldout_N)}
    header |= tokenizer.stored()
    pinned = PINNED.get(_pin_key(config))
    built = _content_sha256(header, tokens_N)
    if pinned is not None and built != pinned:
        raise UserError(
            f"corpus '{config.source}' came out with sha256 {built}, not the pinned {pinned}, and was "
            "not kept; its text is part of modbench, so the difference is tokenizers "
            f"{version('tokenizers')}: install tokenizers {PINNED_WITH}"
        )
    if "shards" not in header:
        buffer = BytesIO()
        np.save(buffer, tokens_N)
        put(path.with_suffix(".npy"), buffer.getvalue())
    document = {"header": header, "sha256": built, "skipped": skipped}
    put(path, json.dumps(document, sort_keys=True).encode())


def _content_sha256(header: dict[str, Any], tokens_N: np.ndarray) -> str:
    """The sha256 of ``header`` and the token ids, framed as in an earlier file format, so that pinned
    values and those in records stay valid."""
    prefix = b"modbench tokens 1\n"
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-(len(prefix) + 8 + len(text)) % 8)
    digest = hashlib.sha256(prefix + len(text).to_bytes(8, "little") + text)
    digest.update(np.ascontiguousarray(tokens_N, dtype="<u2").data)
    return digest.hexdigest()
