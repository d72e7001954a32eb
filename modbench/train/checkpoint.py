"""A run's state on disk: written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from modbench.model.decoder import Decoder


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path`` by ``state``, which survives a kill at any moment."""
    half = path.with_suffix(".half")
    with half.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``; None where there is none."""
    if not path.exists():
        return None
    return torch.load(path, weights_only=True, map_location="cpu")


def save_weights(path: Path, model: Decoder) -> None:
    """Parameters and buffers as safetensors, for others to read."""
    half = path.with_suffix(".half")
    # Parameters that layers share are written once for each name: the format knows no sharing.
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, half)
    half.replace(path)
