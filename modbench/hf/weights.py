"""Weights of a local folder of transformers: safetensors alone, and never code of the folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from modbench.errors import UserError, several
from modbench.hf.config import weights_digest
from modbench.hf.passes import installed
from modbench.model.shape import HubConfig


def load_weights(shape: HubConfig) -> Any:
    """Load the model of ``shape`` in float32 from its folder. Raise a `UserError` if the folder is not
    known or has other weights, a file is damaged, or a tensor is missing."""
    if shape.folder is None:
        raise UserError(
            f"the weights of this {shape.family} ({shape.weights}) are in a folder that is not "
            "named here"
        )
    folder = Path(shape.folder)
    transformers = installed()
    if weights_digest(folder) != shape.weights:
        raise UserError(
            f"the weights in {folder} have changed since the run was planned; start it again"
        )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is truncated or damaged ({_first_line(error)}); copy it again"
            ) from error
    keys = {key: value for key, value in shape.config.items() if key != "model_type"}
    chosen = {} if shape.experts is None else {"experts_implementation": shape.experts}
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=transformers.AutoConfig.for_model(shape.family, **keys),
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **chosen,
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{folder} has no weights that transformers can load as {shape.family} "
            f"({_first_line(error)}); give a folder that save_pretrained wrote"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"the weights in {folder} lack {missing[0]} and in all {several(len(missing), 'tensor')} of "
            f"{type(model).__name__}; copy them again, with the config.json of the same model"
        )
    return model


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
