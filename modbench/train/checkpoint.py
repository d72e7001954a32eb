"""Checkpoints and weights on disk, written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from modbench.errors import UserError
from modbench.routing.build import RoutedDecoder


class DamagedError(ValueError):
    """The file is not as it was written."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path`` by ``state``; safe against a kill at any moment.

    Raises:
        UserError: the file can't be written; ``path`` is unchanged.
    """
    with _whole(path) as half, half.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` at the end, and is removed if that fails.

    Raises:
        UserError: the file can't be written.
    """
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


def load(path: Path) -> dict[str, Any] | None:
    """Load the checkpoint at ``path``; None if there is none.

    Raises:
        DamagedError: the file is not a checkpoint.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (PermissionError, MemoryError):  # the file may be intact
        raise
    # For damaged files PyTorch raises OSError, RuntimeError, EOFError, UnpicklingError or KeyError.
    except Exception as error:
        raise DamagedError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"it holds {type(state).__name__}")
    return state


def save_weights(path: Path, model: RoutedDecoder, *, key: str = "") -> None:
    """Save parameters and buffers as safetensors, with the router's name and the ``key`` of the record.

    Raises:
        UserError: the file can't be written; ``path`` is unchanged.
    """
    # One entry: the order of several is undefined in the format, and equal weights must give equal
    # bytes.
    owner = {"modbench": json.dumps({"router": model.router.name, "key": key})}
    # Shared parameters are written once per name: the format has no sharing.
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with _whole(path) as half:
        save_file(tensors, half, metadata=owner)
