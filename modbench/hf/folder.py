"""Models of a local folder of transformers: safetensors alone, and code of the folder where a suite asks
for it by `trust_remote_code`."""

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from modbench.errors import UserError, models_code, reason, several
from modbench.hf.config import digest_of
from modbench.hf.passes import installed
from modbench.model.shape import HubConfig


def check_files(folder: Path) -> None:
    """Raise a `UserError` if a safetensors file in ``folder`` is truncated or damaged."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is truncated or damaged ({reason(error)}); copy it again"
            ) from error


def load_weights(shape: HubConfig) -> Any:
    """Load the model of ``shape`` in float32 from its folder. Raise a `UserError` if the folder is not
    known or has other weights, a file is damaged, or a tensor is missing."""
    folder = _folder(shape)
    transformers = installed()
    if digest_of(folder) != shape.weights:
        raise UserError(
            f"the weights in {folder} have changed since the run was planned; start it again"
        )
    check_files(folder)
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=_config(shape),
            trust_remote_code=shape.code is not None,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **_experts(shape),
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{folder} has no weights that transformers can load as {shape.family} "
            f"({reason(error)}); give a folder that save_pretrained wrote"
        ) from error
    check_loaded(folder, model, info)
    return model


def check_loaded(folder: Path, model: Any, info: Mapping[str, Any]) -> None:
    """Raise a `UserError` if the weights in ``folder`` lack tensors of ``model``, or have more layers.
    ``info``: what ``from_pretrained`` says of the keys."""
    remedy = "copy them again, with the config.json of the same model"
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"the weights in {folder} lack {missing[0]} and in all {several(len(missing), 'tensor')} of "
            f"{type(model).__name__}; {remedy}"
        )
    known = model.state_dict().keys()
    for name in sorted(info["unexpected_keys"]):
        if re.sub(r"\.\d+\.", ".0.", name, count=1) in known:
            raise UserError(
                f"the weights in {folder} hold {name}, of a layer that its config.json lacks; {remedy}"
            )


def build_from_code(shape: HubConfig, device: str) -> Any:
    """Build the model of ``shape`` with random weights by the code of its folder. Raise a `UserError` if
    the folder is not known or has other code, or that fails."""
    transformers = installed()
    folder = _folder(shape)
    with models_code(f"the code in {folder} builds no model", "fix it there"), torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            _config(shape), trust_remote_code=True, **_experts(shape)
        )


def _folder(shape: HubConfig) -> Path:
    if shape.folder is None:
        what = "code" if shape.weights is None else "weights"
        raise UserError(
            f"the {what} of this {shape.family} ({shape.code or shape.weights}) are in a folder that is "
            "not known here; run its suite, which names it"
        )
    return Path(shape.folder)


def _config(shape: HubConfig) -> Any:
    """Return the config of transformers."""
    transformers = installed()
    known = ("model_type", "auto_map")
    keys = {key: deepcopy(value) for key, value in shape.config.items() if key not in known}
    if shape.code is None:
        return transformers.AutoConfig.for_model(shape.family, **keys)
    folder = _folder(shape)
    if digest_of(folder, "*.py") != shape.code:
        raise UserError(f"the code in {folder} has changed since the run was planned; start it again")
    config = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=True, local_files_only=True
    )
    config.update(keys)
    return config


def _experts(shape: HubConfig) -> dict[str, str]:
    return {} if shape.experts is None else {"experts_implementation": shape.experts}
