"""The plugin contract: a router holds the options of a scheme and builds one layer per depth."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar

from torch import nn

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.layer import Layer
from modbench.typed import check_type

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

    def check_model(self, model: nn.Module) -> None:  # noqa: B027 - most routers have nothing to check
        """Raise a `UserError` if ``model``, whose layers are built, is not what the router means."""

    def options(self) -> dict[str, Any]:
        """Return all options, including defaults; they are part of a record's key. Fields with
        ``init=False`` are no options."""
        hidden = {field.name for field in fields(self) if not field.init}  # type: ignore[arg-type]
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in values.items() if name not in hidden}


def overrides(router: Router, method: str, base: type) -> bool:
    """Return True if the class of ``router`` overrides ``method`` of ``base``."""
    return getattr(type(router), method) is not getattr(base, method)


def check_types(router: Router) -> None:
    """Raise a `UserError` for an option that is NaN or infinite, or of another type or out of the range
    that its class or a base class declares."""
    options = router.options()
    for kind in reversed(type(router).__mro__):
        for name, hint in inspect.get_annotations(kind, eval_str=True).items():
            if name in options:
                check_type(name, options[name], hint)


def reject_unused(router: Router, *rules: tuple[str, bool, str]) -> None:
    """Reject options that are set but have no effect: two rows of a table would differ by name alone. A
    rule is (option, True if it has no effect, option that is the reason). Raise a `UserError`, unless
    they have their default values."""
    defaults = {field.name: field.default for field in fields(router)}  # type: ignore[arg-type]
    for option, is_unused, reason in rules:
        if is_unused and getattr(router, option) != defaults[option]:
            because = f"{reason} {getattr(router, reason)!r}"
            raise UserError(f"option '{option}' has no effect with {because}; leave it out")
