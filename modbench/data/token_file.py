"""A tokenized corpus on disk: NAME.npy holds the token ids, NAME.json the header and the sha256 of
both."""

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from modbench.data.cache_folder import put

Header = dict[str, Any]


def content_sha256(header: Header, tokens_N: np.ndarray) -> str:
    """The sha256 of ``header`` and the token ids, framed as in an earlier file format, so that pinned
    values and those in records stay valid."""
    prefix = b"modbench tokens 1\n"
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-(len(prefix) + 8 + len(text)) % 8)
    digest = hashlib.sha256(prefix + len(text).to_bytes(8, "little") + text)
    digest.update(np.ascontiguousarray(tokens_N, dtype="<u2").data)
    return digest.hexdigest()


def write(path: Path, header: Header, tokens_N: np.ndarray) -> None:
    """Write the token ids and then ``path`` (NAME.json). Raises as `put`."""
    buffer = BytesIO()
    np.save(buffer, tokens_N)
    put(path.with_suffix(".npy"), buffer.getvalue())
    document = {"header": header, "sha256": content_sha256(header, tokens_N)}
    put(path, json.dumps(document, sort_keys=True).encode())


def read(path: Path) -> tuple[Header, np.ndarray, str]:
    """Header, token ids (mapped from the file) and sha256 of ``path`` (NAME.json).

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: one of the files is not as it was written.
    """
    document = json.loads(path.read_bytes())
    tokens_N = np.load(path.with_suffix(".npy"), mmap_mode="r")
    found = content_sha256(document["header"], tokens_N)
    if found != document["sha256"]:
        raise ValueError(f"its content has sha256 {found}, where {document['sha256']} was written")
    return document["header"], tokens_N, found
