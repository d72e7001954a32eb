"""Checkpoints and weights on disk, written whole or not at all. Each file holds the sha256 of its
content, so that one that was damaged later is not used."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modbench.errors import UserError
from modbench.model.language_model import LanguageModel

_DIGEST_BYTES = 32  #: of the sha256 at the end of the file


class DamagedError(ValueError):
    """The file differs from what was written."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path`` by ``state``; safe against a kill at any moment. Raise a
    `UserError` if the file can't be written; ``path`` is then unchanged."""
    with _whole(path) as half, half.open("w+b") as file:
        torch.save(state, file)
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").digest())
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> dict[str, Any] | None:
    """Load the checkpoint at ``path``; None if there is none. Raise a `DamagedError` if the file
    differs from what `save` wrote; a `UserError` if it can't be read."""
    try:
        with path.open("rb") as file:
            saved = file.read(path.stat().st_size - _DIGEST_BYTES)
            digest = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); remove it and run again") from error
    if hashlib.sha256(saved).digest() != digest:
        raise DamagedError("its content differs from its sha256")
    state: dict[str, Any] = torch.load(io.BytesIO(saved), weights_only=True, map_location="cpu")
    return state


def save_weights(path: Path, model: LanguageModel, *, key: str = "") -> None:
    """Save parameters and buffers as safetensors, with the router's name, the ``key`` of the record and
    the sha256 of all that. Raise a `UserError` if the file can't be written; ``path`` is then
    unchanged."""
    # Shared parameters are written once per name: the format has no sharing.
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # One entry, since the order of several is undefined and equal weights must give equal bytes.
    owner = {"router": model.scheme, "key": key}
    owner["sha256"] = _digest(owner, tensors)
    with _whole(path) as half:
        save_file(tensors, half, metadata={"modbench": json.dumps(owner)})


def load_weights(path: Path, model: LanguageModel, *, key: str = "") -> None:
    """Load the weights at ``path`` into ``model``. Raise a `DamagedError` if the file differs from what
    `save_weights` wrote for this model and ``key``."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            owner = json.loads((file.metadata() or {}).get("modbench", "{}"))
    except (SafetensorError, ValueError) as error:
        raise DamagedError(" ".join(str(error).split())[:100]) from error
    if not isinstance(owner, dict) or owner.pop("sha256", None) != _digest(owner, tensors):
        raise DamagedError("its content differs from its sha256")
    if owner != {"router": model.scheme, "key": key}:
        raise DamagedError("it is of another run")
    model.load_state_dict(tensors)


def _digest(owner: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(owner, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` at the end, and is removed if that fails. Raise a
    `UserError` if the file can't be written."""
    half = path.with_suffix(".half")
    try:
        yield half
        half.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason: BaseException = error
        while reason.__context__ is not None:  # PyTorch chains the system's error
            reason = reason.__context__
        raise UserError(
            f"{path}: can't be written ({reason}); make room or fix its permissions, then run again"
        ) from error
    finally:
        half.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in ``folder``."""
    for half in folder.glob("*.half"):
        half.unlink(missing_ok=True)
