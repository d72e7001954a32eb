"""A run's state on disk: written whole or not at all."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modbench.errors import UserError
from modbench.routing.build import RoutedDecoder


class DamagedError(ValueError):
    """The file isn't what was written."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path`` by ``state``, which survives a kill at any moment.

    Raises:
        UserError: the disk refuses; what was at ``path`` is still there.
    """
    with _whole(path) as half, half.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` at the end; nothing is left of it if that fails.

    Raises:
        UserError: the disk refuses.
    """
    half = path.with_suffix(".half")
    try:
        yield half
        half.replace(path)
    except BaseException as error:
        half.unlink(missing_ok=True)
        # A Ctrl-C stays one, whatever it came upon.
        refusal = _refusal(error) if isinstance(error, Exception) else None
        if refusal is None:
            raise
        raise UserError(
            f"{path}: can't be written ({refusal}); make room or mend its permissions, then run again"
        ) from error


def _refusal(error: BaseException | None) -> str | None:
    """Why the disk refuses, if it does: PyTorch raises an error of its own on top of the disk's, which
    safetensors only quotes."""
    while error is not None and not isinstance(error, OSError):
        quoted = re.search(r"([^:]+) \(os error \d+\)", str(error))
        if isinstance(error, SafetensorError) and quoted:
            return quoted[1].strip()
        error = error.__context__
    return None if error is None else error.strerror


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``; None where there is none.

    Raises:
        DamagedError: the file is no checkpoint.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (PermissionError, MemoryError):  # it may be whole
        raise
    # A shortened zip file is an OSError, a RuntimeError or an EOFError to PyTorch, other bytes an
    # UnpicklingError, and some of them a KeyError.
    except Exception as error:
        raise DamagedError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"it holds {type(state).__name__}")
    return state


def save_weights(path: Path, model: RoutedDecoder, *, key: str = "") -> None:
    """Parameters and buffers as safetensors, for others to read; with them whose they are: the router's
    name, and the ``key`` of the run's record.

    Raises:
        UserError: the disk refuses; what was at ``path`` is still there.
    """
    # As one entry: the format writes several in no certain order, and equal weights are equal bytes.
    owner = {"modbench": json.dumps({"router": model.router.name, "key": key})}
    # Parameters that layers share are written once for each name: the format knows no sharing.
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with _whole(path) as half:
        save_file(tensors, half, metadata=owner)


def weights_owner(path: Path) -> dict[str, str]:
    """What `save_weights` noted at ``path``, ``router`` and ``key``; empty where another wrote it."""
    with safe_open(path, framework="pt") as file:
        owner: dict[str, str] = json.loads((file.metadata() or {}).get("modbench", "{}"))
    return owner
