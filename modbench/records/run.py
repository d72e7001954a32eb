"""Subjects of records: a `Run` fixes the weights of a trained model, a `Timed` what is timed without
training.

Their JSON stands in records and job specifications only; the hash of it is the key. A label, a task, a
number of repetitions or a folder is no part of it, so that renaming a row trains nothing. Loads no
torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from modbench.data.config import DataConfig
from modbench.errors import UserError
from modbench.model.shape import HubConfig, Shape, shape_json, shape_of
from modbench.records.line import OPEN, Count, Label, Positive, canonical_json, key_of
from modbench.train.config import SIZE, TrainConfig
from modbench.train.schedule import Schedule
from modbench.typed import built


class RouterJson(TypedDict):
    name: Label
    options: dict[str, Any]
    plugin_sha256: str | None


class RunJson(TypedDict):
    """JSON of a `Run`; in the order of a line, as differences are listed."""

    data: dict[str, Any]
    model: dict[str, Any]
    router: RouterJson
    schedule: dict[str, Any]
    seed: Count
    train: dict[str, Any]


@with_config(OPEN)
class TimedJson(TypedDict):
    """JSON of a `Timed`: other fields are those of `TrainConfig.step_json`."""

    router: RouterJson | None
    model: dict[str, Any]
    sequence: Positive
    batch: Positive
    precision: str


@dataclass(frozen=True, kw_only=True)
class RouterCode:
    """A router with all of its options, and the hash of its code."""

    name: str
    options: dict[str, Any]  #: plain JSON: lists, no tuples
    #: of the plugin file, or of the installed package; None: a router of modbench
    plugin_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "options": self.options, "plugin_sha256": self.plugin_sha256}


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that fixes the weights, besides the content of the text, whose hash a record has."""

    router: RouterCode
    model: Shape
    data: DataConfig
    train: TrainConfig
    schedule: Schedule
    seed: int  #: of the initial weights and of the order of the data

    @cached_property
    def key(self) -> str:
        """Name of its weights: the start of the hash of its JSON."""
        return key_of(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The run as a record holds it. A field that is None is left out: fields that are added later
        leave the keys of older runs unchanged while they are None."""
        return {
            "router": self.router.as_json(),
            "model": shape_json(self.model),
            "data": {name: value for name, value in self.data.settings().items() if value is not None},
            "train": self.train.as_json(),
            "schedule": self.schedule.as_json(),
            "seed": self.seed,
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Run":
        """The run of the JSON ``value``. Raises UserError: a field is unknown, missing or wrong."""
        if "folder" in value["model"]:  # its weights would be read, and its Python run
            raise UserError("run: model has a folder, which no record states")
        parts = {
            name: _built(name, canonical_json(part)) for name, part in value.items() if name != "seed"
        }
        return cls(seed=value["seed"], **parts)

    @property
    def timed(self) -> "Timed":
        """The scheme whose step time is the one of this run; weights of a folder play no part in it."""
        model = self.model.random if isinstance(self.model, HubConfig) else self.model
        return Timed(router=self.router, model=model, train=self.train.of_a_step)


#: The class of each part of a run but its shape, which has several.
_PARTS = {
    "router": RouterCode,
    "model": None,
    "data": DataConfig,
    "train": TrainConfig,
    "schedule": Schedule,
}


@lru_cache(4096)
def _built(name: str, text: str) -> Any:
    """The part ``name`` of the JSON ``text``. The runs of a sweep have most of their parts in common."""
    value, kind = json.loads(text), _PARTS[name]
    where = f"run: {name}"
    return built(where, value, kind) if kind else shape_of(where, value)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """An untrained scheme at one shape and batch; ``router`` is None for the machine's ceilings."""

    router: RouterCode | None
    model: Shape
    train: TrainConfig  #: as `TrainConfig.of_a_step` gives it

    @cached_property
    def key(self) -> str:
        return key_of(self.as_json())

    def as_json(self) -> dict[str, Any]:
        return {
            "router": self.router and self.router.as_json(),
            "model": shape_json(self.model),
            **self.train.step_json(),
        }

    @classmethod
    def of(cls, value: Mapping[str, Any], folder: str | None = None) -> "Timed":
        """The inverse of `as_json`; ``folder``: that of the code of a model of transformers. Raises
        UserError: a field is unknown, missing or wrong."""
        train = dict(value)
        router = train.pop("router")
        model = shape_of("timed: model", train.pop("model"))
        if isinstance(model, HubConfig):
            model = replace(model, folder=folder)
        return cls(
            router=None if router is None else built("timed: router", router, RouterCode),
            model=model,
            train=built("timed", train, TrainConfig),
        )

    @property
    def machine(self) -> "Timed":
        """The ceilings of the machine at these shapes."""
        size: dict[str, Any] = {name: getattr(self.train, name) for name in SIZE}
        return Timed(router=None, model=self.model, train=TrainConfig(**size))


def reported_shape(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape of a record, ``model``, as tables show it: a config.json by its family, since the
    digest next to it identifies it."""
    stated = dict(model)
    if config := stated.pop("config", None):
        stated["family"] = config["model_type"]
    return stated
