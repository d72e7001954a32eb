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
from modbench.hf.config import PREFIX, digest_of, why_unread
from modbench.hf.families import load_config
from modbench.hf.passes import installed
from modbench.model.shape import HubConfig


def load_folder(folder: Path, *, code: bool = False, **options: Any) -> Any:
    """Return the causal language model of ``folder`` with its weights, of safetensors alone; without
    ``code`` none of the folder is run. ``options``: of ``from_pretrained``. Raise a `UserError` if it
    has none, a file is damaged, or a tensor is missing."""
    transformers = installed()
    files, unread = sorted(folder.glob("*.safetensors")), why_unread(folder)
    if not files:
        unread = unread or "it has no safetensors; copy them there"
        raise UserError(f"folder {folder}: {unread}, or give one that save_pretrained wrote")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is truncated or damaged ({reason(error)}); copy it again"
            ) from error
    if str(load_config(folder).get("model_type")).startswith(PREFIX):
        import modbench.hf.retrofit  # noqa: F401  registers its model types
    options |= {"trust_remote_code": code, "local_files_only": True, "use_safetensors": True}
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, **options
        )
    except UserError as error:  # of the router that the folder names
        raise UserError(f"{folder}: {error}") from error
    except (ImportError, OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{folder} has no causal language model that transformers can load ({reason(error)}); give "
            "a folder that save_pretrained wrote"
        ) from error
    _check_loaded(folder, model, info)
    return model


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of ``folder``, which has an end of text. Raise a `UserError` if it has none
    or is damaged."""
    transformers = installed()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises plain ones for a damaged tokenizer.json
        raise UserError(
            f"{folder} has no tokenizer that transformers can load ({reason(error)}); copy the "
            "tokenizer files of the model there"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer in {folder} has no eos_token; set it and save the tokenizer again"
        )
    return tokenizer


def load_weights(shape: HubConfig) -> Any:
    """Load the model of ``shape`` in float32 from its folder. Raise a `UserError` if the folder is not
    known or has other weights, or as `load_folder`."""
    folder = _folder(shape)
    if digest_of(folder) != shape.weights:
        raise UserError(
            f"the weights in {folder} have changed since the run was planned; start it again"
        )
    options = {"config": _config(shape), "dtype": torch.float32, **_experts(shape)}
    return load_folder(folder, code=shape.code is not None, **options)


def _check_loaded(folder: Path, model: Any, info: Mapping[str, Any]) -> None:
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
