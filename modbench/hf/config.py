"""The keys of a suite that name a model of transformers, and the `HubConfig` that they stand for.
Imports neither torch nor transformers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modbench.errors import UserError
from modbench.hf.families import FAMILIES, load_config, stated_length
from modbench.hf.families.config import read_config
from modbench.hf.families.layers import layers_of
from modbench.model.shape import HubConfig
from modbench.typed import built

#: Keys of a config.json that say how weights are stored or used, or name code to run.
_NOT_THE_MODEL = (
    "_name_or_path",
    "architectures",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
#: Ids of special tokens: ours belong to the tokenizer of the data.
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
#: Files that stand for weights and hold none that are read.
_UNREAD = ("*.index.json", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
_NUMBER_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer")


@dataclass(frozen=True, kw_only=True)
class HubKeys:
    """Keys of [model], or of a scheme's model, for a model of transformers."""

    hf: str  #: its config.json, for random weights; or its folder, with safetensors for theirs
    experts: Literal["eager", "batched_mm", "grouped_mm"] | None = None  #: how experts are computed
    trust_remote_code: bool = False  #: run the Python files of the folder, which define the model


def hub_keys(where: str, scheme: Mapping[str, Any], model: Mapping[str, Any]) -> HubKeys | None:
    """Return the keys of a ``scheme`` of a suite whose [model] is ``model``; None if it names no model
    of transformers. Raise a `UserError` for keys of our decoder, options without a router, or a missing
    label; the sentence starts with ``where``."""
    own = scheme.get("model", {})
    if not isinstance(own, Mapping) or not ("hf" in own or "hf" in model):
        return None
    if "options" in scheme and "router" not in scheme:
        raise UserError(
            f"{where} has options, and no router that takes them; give a router, or remove options"
        )
    if not scheme.get("label"):
        raise UserError(f"{where} needs 'label'; give its model of transformers a name")
    keys: HubKeys = built(f"{where} model", {**(model if "hf" in model else {}), **own}, HubKeys)
    return keys


def hub_of(where: str, keys: HubKeys, vocabulary: int, sequence: int) -> HubConfig:
    """Return `hub_config`, whose context must hold a ``sequence``. Raise a `UserError` as there; the
    sentence starts with ``where``."""
    try:
        shape = hub_config(keys, vocabulary)
        if shape.family in FAMILIES:
            read_config(shape.config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if keys.experts and not has_experts(shape):
        raise UserError(
            f"{where} experts is '{keys.experts}', and hf {keys.hf} is a dense model; remove experts"
        )
    if shape.family in FAMILIES and shape.config.get("output_router_logits"):
        windows = [layer.window for layer in layers_of(read_config(shape.config)) if layer.window]
        if any(window <= sequence for window in windows):
            raise UserError(
                f"{where}: hf {keys.hf}: output_router_logits asks for a balance loss, which "
                f"transformers can't compute with a sliding window of {min(windows)}; set "
                "output_router_logits to false or sliding_window to null in config.json"
            )
    stated = stated_length(shape.config)
    if stated is not None and stated < sequence:
        raise UserError(
            f"{where}: hf {keys.hf}: its context is {stated} tokens, and [train] sequence is "
            f"{sequence}; shorten that, or give a model with a longer context"
        )
    return shape


def refuse_sizes(where: str, isoflop: bool, shapes: bool, label: str) -> None:
    """Raise a `UserError` if a suite with the model of transformers ``label`` chooses sizes."""
    for table in [name for name, given in (("[isoflop]", isoflop), ("[[shapes]]", shapes)) if given]:
        raise UserError(
            f"{where} {table} gives sizes, and the model of [[schemes]] '{label}' states its own in its "
            "config.json; remove one of them"
        )


def hub_config(keys: HubKeys, vocabulary: int) -> HubConfig:
    """Return the model that ``keys`` name. With random weights it gets the ``vocabulary`` of the data;
    weights must have as many tokens or more. Raise a `UserError` if there is no config, it is not that
    of a causal language model whose sizes are stated, or weights are pickled or quantised."""
    path = Path(keys.hf)
    stated = load_config(path)
    family = stated.get("model_type")
    if not isinstance(family, str):
        raise UserError(f"hf {path}: its config.json states no model_type; give that of a model")
    if stated.get("is_encoder_decoder"):
        raise UserError(
            f"hf {path}: model_type '{family}' is an encoder-decoder; a row needs a "
            "causal language model"
        )
    width, layers, known = _size(stated, _WIDTH), _size(stated, _LAYERS), _size(stated, ("vocab_size",))
    if width is None or layers is None or known is None:
        raise UserError(
            f"hf {path}: its config.json of model_type '{family}' states no hidden_size, "
            "num_hidden_layers or vocab_size at the top; give that of a causal language model of text"
        )
    config = {key: value for key, value in stated.items() if key not in _NOT_THE_MODEL}
    config |= dict.fromkeys(_SPECIAL)
    experts = _implementation(keys, config)
    weights, code = _weights(path, stated), _code(path, stated) if keys.trust_remote_code else None
    if weights is None:
        config["vocab_size"] = known = vocabulary
    elif known < vocabulary:
        raise UserError(
            f"hf {path}: its weights have {known} token ids, and the tokenizer of [data] has "
            f"{vocabulary}; give [data] the tokenizer of the model, or name its config.json for random "
            "weights"
        )
    return HubConfig(
        vocabulary=known,
        width=width,
        layers=layers,
        config=config,
        weights=weights,
        experts=experts,
        code=code,
        folder=str(path.resolve()) if weights or code else None,
    )


def _implementation(keys: HubKeys, config: Mapping[str, Any]) -> str | None:
    """Return the implementation of experts; None: grouped matmuls, as transformers has it. Raise a
    `UserError` if those are asked for and a row of a bfloat16 weight is no multiple of 16 bytes."""
    rows = [
        config.get("hidden_size"),
        config.get("moe_intermediate_size") or config.get("intermediate_size"),
    ]
    odd = [size for size in rows if isinstance(size, int) and size % 8]
    if not odd or not any(config.get(name) for name in _NUMBER_OF_EXPERTS):
        return keys.experts
    if keys.experts == "grouped_mm":
        raise UserError(
            f"hf {keys.hf}: experts is 'grouped_mm', and {odd[0]} is no multiple of 8, which these "
            "matmuls need of hidden_size and the experts' width; set experts to 'eager'"
        )
    return keys.experts or "eager"


def has_experts(shape: HubConfig) -> bool:
    """Return True if layers of the model have experts; of a family without a closed form, if its config
    states a number of them."""
    return any(shape.config.get(name) for name in _NUMBER_OF_EXPERTS) or (
        shape.family in FAMILIES and read_config(shape.config).num_experts > 0
    )


def stretched(shape: HubConfig, tokens: int) -> HubConfig:
    """Return ``shape`` with random weights and a context of ``tokens`` or more, for a learned position
    embedding; rotary ones have no end."""
    names = ["n_positions"]
    if not any(name.startswith("rope") for name in shape.config):
        names.append("max_position_embeddings")
    stated = {name: shape.config.get(name) for name in names}
    short = {name: tokens for name, of in stated.items() if isinstance(of, int) and of < tokens}
    return replace(shape.random, config=shape.config | short, digest="") if short else shape.random


def matrices_of(shape: HubConfig) -> dict[str, tuple[int, int]]:
    """Return inner dimension and columns of the matmuls of a layer and of the head, by component; of a
    family without a closed form the head alone."""
    shapes = {"head": (shape.width, shape.vocabulary)}
    if shape.family not in FAMILIES:
        return shapes
    for matrix in layers_of(read_config(shape.config))[-1].matrices:
        name = matrix.component
        while name in shapes:
            name += " again"
        shapes[name] = (matrix.inner, matrix.outer)
    return shapes


def _size(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _weights(path: Path, stated: Mapping[str, Any]) -> str | None:
    """Return the digest of the weights in the folder ``path``; None if there are none."""
    if not path.is_dir():
        return None
    if unread := why_unread(path):
        raise UserError(f"hf {path}: {unread}, or name its config.json for random weights")
    if not any(path.glob("*.safetensors")):
        return None
    if "quantization_config" in stated:
        raise UserError(
            f"hf {path}: its weights are quantised, and training needs floating-point ones; give the "
            "folder of the model before quantisation, or name its config.json for random weights"
        )
    return digest_of(path)


def why_unread(folder: Path) -> str:
    """Return why no weights in ``folder`` can be read, and a remedy; empty if they are safetensors, or
    there are none."""
    if any(folder.glob("*.safetensors")):
        return ""
    if pickled := sorted(file.name for kind in _PICKLES for file in folder.glob(kind)):
        return f"its weights {pickled[0]} are pickled, which may run code; save them as safetensors"
    others = sorted(file.name for kind in _UNREAD for file in folder.glob(kind))
    return f"it has {others[0]} and no safetensors; copy those of the model there" if others else ""


def _code(path: Path, stated: Mapping[str, Any]) -> str:
    """Return the digest of the Python files in the folder ``path``."""
    if "auto_map" not in stated or not any(path.glob("*.py")):
        raise UserError(
            f"hf {path} has trust_remote_code, and it is no folder with Python files and a config.json "
            "whose auto_map names them; remove trust_remote_code"
        )
    return digest_of(path, "*.py")


def digest_of(folder: Path, files: str = "*.safetensors") -> str:
    """Return the start of the sha256 of the safetensors in ``folder``, or of other ``files``."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob(files)):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


#: Start of the model types that `modbench.hf.retrofit` registers.
PREFIX = "modbench_"
