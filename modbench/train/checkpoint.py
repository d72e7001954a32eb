"""A run's state on disk: written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
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


def save_weights(path: Path, model: Decoder, *, key: str = "") -> None:
    """Parameters and buffers as safetensors, for others to read; with them whose they are: the router's
    name, and the ``key`` of the run's record."""
    # As one entry: the format writes several in no certain order, and equal weights are equal bytes.
    owner = {"modbench": json.dumps({"router": model.router.name, "key": key})}
    half = path.with_suffix(".half")
    # Parameters that layers share are written once for each name: the format knows no sharing.
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, half, metadata=owner)
    half.replace(path)


def weights_owner(path: Path) -> dict[str, str]:
    """What `save_weights` noted at ``path``, ``router`` and ``key``; empty where another wrote it."""
    with safe_open(path, framework="pt") as file:
        owner: dict[str, str] = json.loads((file.metadata() or {}).get("modbench", "{}"))
    return owner
