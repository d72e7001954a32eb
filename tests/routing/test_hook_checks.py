"""Checks of what hooks return, and options that a scheme hides."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.layer import Layer
from modbench.routing.router import Router, check_types, reject_unused


@dataclass(frozen=True, kw_only=True)
class Base(Router):
    """A router with a hook and two options."""

    name: ClassVar[str] = "base"
    kept: float = 1.0
    hidden: int = 2

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer)

    def choose(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    """Hides an option, and inherits the hook."""

    hidden: int = field(init=False, default=3)


def test_a_hidden_field_is_no_option() -> None:
    router = Derived(kept=2.0)
    assert router.hidden == 3
    assert router.options() == {"kept": 2.0}
    check_types(router)
    reject_unused(router, ("hidden", True, "kept"), ("kept", False, "hidden"))
    with pytest.raises(TypeError, match="hidden"):
        Derived(hidden=1)  # type: ignore[call-arg]
