"""The token file: one artefact that holds a tokenized corpus, whole or not there at all.

Layout: a magic line; the length of the header (8 bytes, little endian); the header (JSON: configuration,
merges, counts); the training tokens; the held-out tokens; and last the sha256 of all before it.
Header and tokens depend on the corpus and the configuration alone, so that sha256 can be pinned.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modbench.data.tokenizer import Tokenizer

_MAGIC = b"modbench tokens 1\n"
_DIGEST = 32  # bytes
_DTYPE = np.dtype("<u2")
_AT_ONCE = 1000  # documents whose token lists are in memory at one time


class AlteredError(ValueError):
    """The file isn't what was written: shortened, changed, or something else altogether."""


@dataclass(frozen=True)
class TokenFile:
    """What a token file holds; the token streams are mapped from the file."""

    header: dict[str, Any]
    tokenizer: Tokenizer
    train_N: np.ndarray
    heldout_N: np.ndarray
    sha256: str


def compose(
    header: dict[str, Any], tokenizer: Tokenizer, train_N: np.ndarray, heldout_N: np.ndarray
) -> bytes:
    """The bytes of a token file."""
    said = header | {
        "merges": [list(merge) for merge in tokenizer.merges],
        "train_tokens": len(train_N),
        "heldout_tokens": len(heldout_N),
    }
    written = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    # Padded, so that the mapped tokens lie at an even address.
    written += b" " * (-(len(_MAGIC) + 8 + len(written)) % 8)
    content = b"".join(
        (
            _MAGIC,
            len(written).to_bytes(8, "little"),
            written,
            train_N.astype(_DTYPE).tobytes(),
            heldout_N.astype(_DTYPE).tobytes(),
        )
    )
    return content + hashlib.sha256(content).digest()


def sha256_of(content: bytes) -> str:
    """The sha256 that a token file's ``content`` states of itself."""
    return content[-_DIGEST:].hex()


def read(path: Path) -> TokenFile:
    """The token file at ``path``, its content checked against its own sha256.

    Raises:
        FileNotFoundError: there is none.
        AlteredError: it is not as it was written.
    """
    # Opened once: what is checked is what is mapped, whatever happens to the name meanwhile.
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < len(_MAGIC) + 8 + _DIGEST:
            raise AlteredError(f"it has {size} bytes")
        content_B = np.memmap(file, dtype=np.uint8, mode="r")
    if content_B[: len(_MAGIC)].tobytes() != _MAGIC:
        raise AlteredError("it does not start as a token file")
    found = hashlib.sha256(content_B[:-_DIGEST].data).digest()
    stated = content_B[-_DIGEST:].tobytes()
    if found != stated:
        raise AlteredError(f"its content has sha256 {found.hex()}, where {stated.hex()} was written")
    at = len(_MAGIC) + 8
    length = int.from_bytes(content_B[len(_MAGIC) : at].tobytes(), "little")
    header = json.loads(content_B[at : at + length].tobytes())
    tokens_N = content_B[at + length : -_DIGEST].view(_DTYPE)
    return TokenFile(
        header=header,
        tokenizer=Tokenizer([(left, right) for left, right in header["merges"]]),
        train_N=tokens_N[: header["train_tokens"]],
        heldout_N=tokens_N[header["train_tokens"] :],
        sha256=found.hex(),
    )


def stream(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """The documents' tokens one after another, each document followed by the end-of-text id."""
    parts = []
    for start in range(0, len(texts), _AT_ONCE):
        for ids in tokenizer.encode_all(texts[start : start + _AT_ONCE]):
            parts.append(np.array([*ids, tokenizer.end_of_text], dtype=_DTYPE))
    return np.concatenate(parts)
