"""Reads a config.json by its family's keys: renames, defaults and type checks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modbench.errors import UserError, known_names
from modbench.typed import checked

#: By family, the keys of its config.json that are read, with transformers' defaults.
DEFAULTS: Mapping[str, Mapping[str, Any]] = json.loads(
    Path(__file__).with_name("defaults.json").read_bytes()
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Differences between families that no key of config.json states. ``also``: other names of keys.
    Biases: always, never, or the key of the config that states it."""

    also: Mapping[str, str] = field(default_factory=dict)
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    query_key_norm: Literal["none", "head", "width"] = "none"


_BIASED: Any = {"qkv_bias": "attention_bias", "out_bias": "attention_bias"}
_EXPERTS = {"num_local_experts": "num_experts"}
_OF_GPT2 = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions"}
_OF_GPT2 |= {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
FAMILIES: Mapping[str, Family] = {
    "llama": Family(**_BIASED, mlp_bias="mlp_bias"),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(**_BIASED, query_key_norm="head"),
    "gpt2": Family(also=_OF_GPT2),
    "mixtral": Family(),
    "olmoe": Family(**_BIASED, query_key_norm="width", also=_EXPERTS),
    "qwen2_moe": Family(qkv_bias="qkv_bias"),
    "qwen3_moe": Family(**_BIASED, query_key_norm="head", also=_EXPERTS),
    "deepseek_v3": Family(also={"num_local_experts": "n_routed_experts"}),
}


def load_config(path: str | Path) -> dict[str, Any]:
    """Load a model's config.json from the file or its folder. Raise a `UserError` if the file can't be
    read or is not a JSON object."""
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"config {path} can't be read ({error}); give a model's config.json") from error
    if not isinstance(config, dict):
        raise UserError(f"config {path} holds no JSON object; give a model's config.json")
    return config


class Source:
    """One config, read key by key. Raise a `UserError` for an unknown family."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        name: Any = config.get("model_type")
        if name not in FAMILIES:
            raise UserError(
                f"model_type '{name}' is no causal language model with a closed form; "
                f"{known_names(name, FAMILIES)}"
            )
        self.name: str = name
        self.family, defaults = FAMILIES[name], DEFAULTS[name]
        # The family's keys under one name each, with defaults.
        renamed = {key: config[other] for other, key in self.family.also.items() if other in config}
        found = {key: config[key] for key in defaults if key in config}
        self._config = {**defaults, **renamed, **found}

    def __contains__(self, key: str) -> bool:
        """Return True if the family has this key."""
        return key in self._config

    def read(self, key: str, hint: Any) -> Any:
        """Return the value of a key (None if it is missing), which must be of type ``hint``."""
        return checked(f"config {key}", self._config.get(key), hint)

    def size(self, key: str, least: int = 1) -> int:
        """Return a whole number of ``least`` or more."""
        value: int = self.read(key, int)
        if value < least:
            raise UserError(f"config {key} is {value}; it must be {least} or more")
        return value

    def size_or_none(self, key: str) -> int | None:
        return None if self._config.get(key) is None else self.size(key)

    def flag(self, key: bool | str) -> bool:
        """Return the value of a key, or a bool as it is."""
        return key if isinstance(key, bool) else bool(self.read(key, bool))
