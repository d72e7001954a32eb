"""The plugin contract: a Router holds a scheme's options and builds one Layer for each depth."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from modbench.model.config import ModelConfig
from modbench.model.layer import Layer

#: Options by the name of their set.
Presets = Mapping[str, Mapping[str, Any]]


class Router(ABC):
    """A routing scheme: a frozen dataclass whose fields are its options, registered under a name.

    Options that are out of range are refused in ``__post_init__`` with a `UserError` that names the
    field, the value and what would be right; a shape that the scheme can't take, in ``build_layer``.
    """

    name: ClassVar[str]
    #: Sets of options by name, for what has one: ``modbench flops --router mod:every_block``. The FLOP
    #: gate holds each of them still.
    presets: ClassVar[Presets] = {}

    @abstractmethod
    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        """The layer at depth ``layer`` (from 0) of a decoder of shape ``model``."""

    def options(self) -> dict[str, Any]:
        """All options, defaults included: they are part of a record's key."""
        return asdict(self)  # type: ignore[call-overload]
