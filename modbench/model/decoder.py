"""The one decoder that all schemes share: embedding, a router's layers, norm, head.

B sequences, T tokens, D model width, V vocabulary.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.flops.component import component
from modbench.flops.ledger import OUTSIDE, Ledger, Load, matmul
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.initial import normal_, stream
from modbench.model.router import Layer, Router


class Decoder(nn.Module):
    """A causal language model whose layers are a router's."""

    def __init__(self, config: ModelConfig, router: Router) -> None:
        super().__init__()
        self.config, self.router = config, router
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(_layer(router, config, n) for n in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.head = None if config.tied_head else nn.Linear(config.width, config.vocabulary, bias=False)

    def initialise(self, seed: int) -> None:
        """First weights. The shared parts come out alike under every router."""
        normal_(self.embedding.weight, seed, "embedding")
        if self.head is not None:
            normal_(self.head.weight, seed, "head")
        for module in self.layers.modules():
            # Each module fills the parameters that are its own, from streams named after them.
            initialise = getattr(module, "initialise", None)
            if callable(initialise):
                initialise(seed)

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """Logits (B, T, V)."""
        x_BTD = self.embedding(tokens_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, context)
        x_BTD = self.norm(x_BTD)
        with component("head"):
            return F.linear(x_BTD, self.embedding.weight if self.head is None else self.head.weight)

    def ledger(self, load: Load) -> Ledger:
        """The closed form of what `forward` spends on ``load``."""
        layers: list[Layer] = list(self.layers)  # type: ignore[arg-type]
        head = matmul(
            load,
            OUTSIDE,
            "head",
            rows=load.slots,
            inner=self.config.width,
            columns=self.config.vocabulary,
        )
        return Ledger.sum([_ledger(self.router, layer, load) for layer in layers]) + head

    def parameter_count(self, kind: Literal["total", "active"] = "total") -> int:
        """Trained parameters: all, or those that one token meets when it is routed everywhere it can
        be. The embedding counts whole in both, a tied head once."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if kind == "total":
            return total
        layers: list[Layer] = list(self.layers)  # type: ignore[arg-type]
        idle = sum(
            sum(parameter.numel() for parameter in layer.parameters()) - layer.active_parameters()
            for layer in layers
        )
        return total - idle


def _layer(router: Router, config: ModelConfig, number: int) -> Layer:
    """What ``router`` builds; its mistakes are its author's to mend, and are told as such."""
    try:
        layer = router.build_layer(config, number)
    except UserError as error:
        raise UserError(f"router '{router.name}': {error}") from error
    except Exception as error:
        raise UserError(
            f"router '{router.name}' raised {type(error).__name__}: {error} in build_layer for layer "
            f"{number}; mend it"
        ) from error
    if not isinstance(layer, Layer):
        raise UserError(
            f"router '{router.name}' built {type(layer).__name__} for layer {number}; build_layer must "
            "return a modbench.model.router.Layer"
        )
    return layer


def _ledger(router: Router, layer: Layer, load: Load) -> Ledger:
    try:
        ledger = layer.ledger(load)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"router '{router.name}' raised {type(error).__name__}: {error} in ledger; mend it"
        ) from error
    if not isinstance(ledger, Ledger):
        raise UserError(
            f"router '{router.name}' gave {type(ledger).__name__} for a ledger; it must return a "
            "modbench.flops.ledger.Ledger"
        )
    return ledger


def build_model(config: ModelConfig, router: Router, seed: int = 0) -> Decoder:
    """A decoder with first weights: the same bits for the same arguments, whatever ran before.

    Raises:
        UserError: the router can't take this shape.
    """
    state = torch.get_rng_state()
    # What a plugin initialises in its own way draws from the global generator.
    torch.manual_seed(stream(seed, "router").initial_seed())
    try:
        model = Decoder(config, router)
        model.initialise(seed)
    finally:
        torch.set_rng_state(state)
    return model
