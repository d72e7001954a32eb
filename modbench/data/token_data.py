"""Tokens to train on and to be judged by: prepared once, kept in the cache, checked at every start.

Legend: N tokens, V vocabulary.
"""

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np

from modbench.data import token_file
from modbench.data.cache_folder import alone, cache_folder, put
from modbench.data.config import DataConfig
from modbench.data.corpus import read_corpus, text_sha256
from modbench.data.tokenizer import Tokenizer, train_bpe
from modbench.errors import UserError

__all__ = ["DataConfig", "TokenData", "heldout_documents", "load", "prepare", "prepare_command"]

#: sha256 of the token files that must come out the same everywhere: (source, tokenizer, vocabulary).
PINNED: dict[tuple[str, str, int], str] = {
    ("pypi-en-v1", "bpe", 2048): "b1b8672780a9d2759f551147326bbf55ce68deeeb475ec32a77c50d4508f01f3",
    ("pypi-en-v1", "bytes", 257): "fdd3bb5913b8935bb6ff898ac714017fcca9083ce8705323e859fe97be1c31d7",
}
PINNED_WITH = "0.23.3"  # the version of tokenizers that the pinned files were made with


@dataclass(frozen=True)
class TokenData:
    """A tokenized corpus. The two streams are read-only, mapped from the file: copy what you change."""

    train_N: np.ndarray  #: uint16; each document is followed by the end-of-text id
    heldout_N: np.ndarray  #: the same for the held-out part
    token_bytes_V: np.ndarray  #: int64: bytes of text that each token stands for, 0 for end of text
    tokenizer: Tokenizer
    sha256: str  #: of the token file's content


def prepare(
    config: DataConfig,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = print,
    archives: Path | None = None,
    force: bool = False,
) -> TokenData:
    """The tokens of ``config``, built if they aren't in the cache yet.

    Args:
        config: corpus and tokenizer.
        cache: cache folder; by default ``MODBENCH_CACHE``, else the user's cache folder.
        say: told what takes long before it starts.
        archives: a folder that already holds the embedded corpus's archives; nothing is fetched then.
        force: build again even if a file is there.

    Raises:
        UserError: the text can't be had or changes meanwhile, the cache can't be written, the file in
            the cache was altered, or what was built isn't what is pinned; nothing is left in the cache
            then.
    """
    cache = cache or cache_folder()
    path = _token_path(config, cache)
    if path.exists() and not force:
        return load(config, cache=cache)
    with alone(path, say):
        # Another process may have built it while this one waited.
        if force or not path.exists():
            _build(config, path, cache, say, archives)
    return load(config, cache=cache)


def load(config: DataConfig, *, cache: Path | None = None) -> TokenData:
    """The tokens of ``config`` from the cache, verified.

    Raises:
        UserError: they aren't there, or the file was altered.
    """
    path = _token_path(config, cache or cache_folder())
    try:
        file = token_file.read(path)
    except FileNotFoundError:
        changed = ", or has changed since" if config.source == "text" else ""
        raise UserError(
            f"corpus '{config.source}' is not prepared{changed} ({path} is missing); run "
            f"`{_command(config)}`"
        ) from None
    except (token_file.AlteredError, OSError) as error:
        raise UserError(
            f"token file {path} of corpus '{config.source}' was altered ({error}); delete it or run "
            f"`{_command(config)} --force`"
        ) from None
    if file.header["config"] != config.settings():
        raise UserError(
            f"token file {path} was made for other settings ({file.header['config']}); delete it or run "
            f"`{_command(config)} --force`"
        )
    pinned = PINNED.get(_pin_key(config))
    if pinned is not None and file.sha256 != pinned:
        raise UserError(
            f"token file {path} of corpus '{config.source}' has sha256 {file.sha256}, not the pinned "
            f"{pinned}; delete it or run `{_command(config)} --force`"
        )
    return TokenData(
        train_N=file.train_N,
        heldout_N=file.heldout_N,
        token_bytes_V=np.array([len(piece) for piece in file.tokenizer.pieces], dtype=np.int64),
        tokenizer=file.tokenizer,
        sha256=file.sha256,
    )


def heldout_documents(config: DataConfig | None = None, *, cache: Path | None = None) -> list[str]:
    """The text of the held-out documents, in the order of ``TokenData.heldout_N``.

    Raises:
        UserError: as :func:`load`.
    """
    data = load(config or DataConfig(), cache=cache)
    ends = np.flatnonzero(data.heldout_N == data.tokenizer.end_of_text)
    return [data.tokenizer.decode(ids_N.tolist()) for ids_N in np.split(data.heldout_N, ends + 1)[:-1]]


def prepare_command(
    config: DataConfig,
    *,
    force: bool = False,
    archives: Path | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """What ``modbench data prepare`` does; returns the sentences to print. Errors as :func:`prepare`."""
    data = prepare(config, cache=cache, say=say, archives=archives, force=force)
    text_bytes = int(data.token_bytes_V[data.heldout_N].sum())
    return (
        f"{config.source} is ready: {len(data.train_N):,} training and {len(data.heldout_N):,} held-out "
        f"tokens of a {config.tokenizer} vocabulary of {data.tokenizer.vocabulary:,} "
        f"({text_bytes / len(data.heldout_N):.2f} bytes per token)\n"
        f"sha256 {data.sha256}\n{_token_path(config, cache or cache_folder())}"
    )


def _header(config: DataConfig) -> dict[str, object]:
    """What decides the tokens, apart from the code: it names the file, and stands in it."""
    return {"config": config.settings(), "text_sha256": text_sha256(config)}


def _token_path(config: DataConfig, cache: Path) -> Path:
    return _path_of(_header(config), config, cache)


def _path_of(header: dict[str, object], config: DataConfig, cache: Path) -> Path:
    written = json.dumps(header, sort_keys=True).encode()
    name = "-".join(map(str, (*_pin_key(config), hashlib.sha256(written).hexdigest()[:12])))
    return cache / f"{name}.tokens"


def _command(config: DataConfig) -> str:
    """What a user types to have the tokens of this very ``config`` prepared."""
    words = ["modbench", "data", "prepare"]
    defaults = {field.name: field.default for field in fields(config)}
    if config.tokenizer == "bytes":
        defaults["vocabulary"] = config.vocabulary  # it has no other
    for name, value in config.settings().items():
        if value != defaults[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _pin_key(config: DataConfig) -> tuple[str, str, int]:
    return config.source, config.tokenizer, config.vocabulary


def _build(
    config: DataConfig, path: Path, cache: Path, say: Callable[[str], None], archives: Path | None
) -> None:
    corpus = read_corpus(config, kept=cache / "archives", archives=archives, say=say)
    header = _header(config)
    # What was read may be another text than the one that the name is of, which may come back.
    if _path_of(header, config, cache) != path:
        raise UserError(
            f"data path '{config.path}' changed while it was made ready; run again once nobody writes "
            "to it"
        )
    train = [document.text for document in corpus.train]
    heldout = [document.text for document in corpus.heldout]
    say(f"tokenizing {sum(map(len, train)) + sum(map(len, heldout)):,} characters of {config.source}")
    tokenizer = Tokenizer() if config.tokenizer == "bytes" else train_bpe(train, config.vocabulary)
    train_N, heldout_N = token_file.stream(tokenizer, train), token_file.stream(tokenizer, heldout)
    content = token_file.compose(header, tokenizer, train_N, heldout_N)
    pinned, built = PINNED.get(_pin_key(config)), token_file.sha256_of(content)
    if pinned is not None and built != pinned:
        raise UserError(
            f"corpus '{config.source}' came out with sha256 {built}, not the pinned {pinned}, and was "
            "not kept; its archives are as pinned, so the difference is tokenizers "
            f"{version('tokenizers')}: install tokenizers {PINNED_WITH}"
        )
    put(path, content)
