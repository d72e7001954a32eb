"""The plugin contract: a Router holds a scheme's options and builds one Layer for each depth.

B sequences, T tokens, D model width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from torch import Tensor, nn

from modbench.flops.ledger import Counts, Ledger, Load
from modbench.model.config import ModelConfig
from modbench.model.context import Context

#: Options by the name of their set.
Presets = Mapping[str, Mapping[str, Any]]


class Layer(nn.Module, ABC):
    """One depth of the decoder. ``forward`` and ``ledger`` mirror each other, in one class.

    ``host_decides``: in training, how many tokens are routed follows from their scores and is asked of
    the device (``tolist``, ``item``, ``nonzero``). torch.compile leaves such a layer as it is written.
    """

    host_decides = False

    @abstractmethod
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """The residual stream after this layer, (B, T, D)."""

    @abstractmethod
    def ledger(self, load: Load) -> Ledger:
        """The closed form of what ``forward`` spends on ``load`` (and its backward pass, in phase
        ``train``)."""

    def promised(self, load: Load) -> Counts:
        """The counts, as `Trace.count` takes them, that the training rule keeps to exactly, whatever
        the scores; none where routing decides how many. What ``ledger`` takes as nominal."""
        return {}

    def takes_gradient(self, load: Load) -> bool:
        """Whether the gradient of what comes out reaches a trained parameter of this layer. Where tokens
        decide whether to enter at all, and none did, it reaches none."""
        return trains(self)

    def active_parameters(self) -> int:
        """Parameters that a token meets which is routed everywhere it can be. A layer with more
        experts than a token is sent to says so here."""
        return sum(parameter.numel() for parameter in self.parameters())


def trains(part: nn.Module) -> bool:
    """Whether any parameter of ``part`` is trained: frozen ones need no gradient."""
    return any(parameter.requires_grad for parameter in part.parameters())


def after(load: Load, part: nn.Module) -> Load:
    """The load of what follows ``part``: where that is trained, the backward pass goes on to it."""
    return load if load.input_gradient else load.after(trains(part))


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
