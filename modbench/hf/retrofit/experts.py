"""Experts in place of a layer's MLP: the module, and the part of a layer's class that tells it of
padding.

B sequences, T tokens, D model width.
"""

from typing import Any

from torch import Tensor, nn

from modbench.errors import UserError
from modbench.hf.retrofit.layer import PASS, Pass, named_arguments
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.expert_router import ExpertScheme, RoutedExperts


class UpcycledExperts(nn.Module):
    """A bank of experts as `ExpertRouter` has it, called as an MLP of transformers is."""

    def __init__(self, options: ExpertScheme, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.experts = RoutedExperts(options, model, layer)
        #: What the layer that is running knows of its tokens.
        self.current: Pass | Context | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        current, self.current = self.current, None
        if isinstance(current, Context):  # tokens that depth routing has gathered
            return self.experts(hidden_states, current)  # type: ignore[no-any-return]
        assert current is not None
        x_BTD = current.ordered(hidden_states)
        return current.restored(self.experts(x_BTD, current.context(x_BTD)))


class ExpertLayer(nn.Module):
    """The part of a layer with experts that comes before the layer's own class."""

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        named |= named_arguments(self, arguments)
        current: Pass | Context | None = named.pop(PASS, None)
        if current is None:
            raise UserError(
                f"{type(self).__name__} was called without the model around it; call the causal "
                "language model itself (for hidden states with output_hidden_states=True)"
            )
        mlp: UpcycledExperts = self.mlp  # type: ignore[assignment]
        mlp.current = current
        if isinstance(current, Context):
            return super().forward(hidden_states, **named)  # type: ignore[misc,no-any-return]
        with current.repeating(mlp):
            return super().forward(hidden_states, **named)  # type: ignore[misc,no-any-return]


def expert_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of the layer class ``kind`` whose MLP is a bank of experts."""
    if kind not in _CLASSES:
        own = {"modbench_own": getattr(kind, "modbench_own", kind)}
        _CLASSES[kind] = type(f"Expert{kind.__name__}", (ExpertLayer, kind), own)
    return _CLASSES[kind]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
