"""The shape of a model: of our decoder, or of a model of Hugging Face transformers. Imports no torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.typed import Count, built, check_type

#: Name of the router in records of models of transformers, which have none of ours.
TRANSFORMERS = "transformers"


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """A model of transformers: the content of its config.json, and what else fixes its weights. Two are
    equal if all but ``config`` and ``folder`` are: the digest stands for the config. Raise a `UserError`
    if the digest is not that of the config, or see `refuse_hub_code`."""

    vocabulary: Count
    width: Count
    layers: Count
    config: dict[str, Any] = field(compare=False)  #: of the config.json, with the vocabulary of the data
    digest: str = ""  #: start of the sha256 of ``config`` as canonical JSON; empty: computed
    weights: str | None = None  #: start of the sha256 of the safetensors; None: random weights
    experts: str | None = None  #: implementation of the experts; None: transformers' default
    code: str | None = (
        None  #: start of the sha256 of the folder's Python files, which are run; None: none
    )
    #: holds the weights or the code; no part of a record
    folder: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        text = json.dumps(self.config, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if self.digest not in ("", digest):
            raise UserError(f"model digest is {self.digest}, and that of its config is {digest}")
        object.__setattr__(self, "digest", digest)
        refuse_hub_code(self.config)

    @property
    def family(self) -> str:
        """The ``model_type`` of the config."""
        return str(self.config["model_type"])

    @property
    def random(self) -> "HubConfig":
        """The same model with random weights."""
        folder = None if self.code is None else self.folder
        return HubConfig(**asdict(self) | {"weights": None, "folder": folder})


def refuse_hub_code(config: Mapping[str, Any]) -> None:
    """Raise a `UserError` if the content of a config.json names an implementation with a '/': code on
    the hub, which transformers would fetch and run."""
    for key, value in config.items():
        if "_implementation" in str(key) and "/" in json.dumps(value, default=str):
            raise UserError(
                "config.json names an implementation on the Hugging Face hub; remove that key"
            )
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                refuse_hub_code(inner)


#: Fields that fix the shape of a model, without routing.
Shape: TypeAlias = ModelConfig | HubConfig


def shape_json(shape: Shape) -> dict[str, Any]:
    """Return ``shape`` as a record states it: fields that are None, and folders, are left out; so are
    fields of later versions that have their default, and keys of records stay."""
    stated = {field.name: getattr(shape, field.name) for field in fields(shape)}
    left_out = {"folder", *(() if stated.get("qk_norm") else ("qk_norm",))}
    return {key: value for key, value in stated.items() if value is not None and key not in left_out}


def shape_of(where: str, value: Mapping[str, Any]) -> Shape:
    """Return the shape of the JSON ``value``, with or without fields that are None. Raise a `UserError`
    if a field is unknown, missing or wrong; the message starts with ``where``."""
    if "config" not in value:
        return built(where, value, ModelConfig)  # type: ignore[no-any-return]
    # The config's own numbers must keep their types: 1.0 and 1 have different digests.
    config = check_type(f"{where} config", value["config"], dict[str, Any])
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{where} config has no model_type; give the content of a config.json")
    plain = built(where, {**value, "config": {}, "digest": ""}, HubConfig)
    return HubConfig(**asdict(plain) | {"config": config, "digest": value.get("digest", "")})
