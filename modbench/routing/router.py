"""The plugin contract: a router holds the options of a scheme and builds one layer per depth."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar

from modbench.model.config import ModelConfig
from modbench.model.layer import Layer

#: Named sets of options.
Presets = Mapping[str, Mapping[str, Any]]


class Router(ABC):
    """A routing scheme: a frozen dataclass whose fields are its options, registered under a name.

    ``__post_init__`` rejects options out of range with a `UserError` that names the field, its value and
    a valid value; ``build_layer`` rejects unsupported shapes in the same way.
    """

    name: ClassVar[str]
    #: Named options, as in ``modbench flops --router mod:every_block``; the FLOP gate covers each.
    presets: ClassVar[Presets] = {}

    @abstractmethod
    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        """Build the layer at depth ``layer`` (from 0) of a decoder of shape ``model``."""

    def options(self) -> dict[str, Any]:
        """Return all options, including defaults; they are part of a record's key. Fields with
        ``init=False`` are no options."""
        hidden = {field.name for field in fields(self) if not field.init}  # type: ignore[arg-type]
        found: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in found.items() if name not in hidden}


def overrides(router: Router, method: str, base: type) -> bool:
    """Return True if the class of ``router`` overrides ``method`` of ``base``."""
    return getattr(type(router), method) is not getattr(base, method)
