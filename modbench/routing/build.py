"""Models from a shape and a router."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from modbench.ledger import Counts, Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.model.init import stream
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.plugin_validation import active_of, checked_call, ledger_of
from modbench.routing.router import Router


class RoutedDecoder(Decoder):
    """A decoder whose layers ``router`` builds; what the layers report is validated.

    Raises:
        UserError: the router cannot build a layer for this shape.
    """

    def __init__(self, config: ModelConfig, router: Router) -> None:
        layers = (
            checked_call(
                router, f"build_layer of layer {number}", Layer, router.build_layer, config, number
            )
            for number in range(config.layers)
        )
        super().__init__(config, layers)
        self.router = router

    @property
    def flops_source(self) -> Literal["closed form", "counted"]:
        """How FLOPs are found: from closed forms alone, or with parts counted on the meta device."""
        parts = [part for part in self.modules() if isinstance(part, Layer | FeedForward)]
        return "closed form" if all(part.has_closed_form for part in parts) else "counted"

    def identity(self) -> dict[str, Any]:
        return {"router": self.router.name, **self.router.options(), **super().identity()}

    def layer_ledger(self, number: int, workload: Workload) -> Ledger:
        return ledger_of(self.router, self.layers[number], number, workload)  # type: ignore[arg-type]

    def layer_nominal_counts(self, number: int, workload: Workload) -> Counts:
        where = f"nominal_counts of layer {number}"
        layer: Layer = self.layers[number]  # type: ignore[assignment]
        counts: Counts = checked_call(self.router, where, Mapping, layer.nominal_counts, workload)
        return counts

    def active_of(self, part: nn.Module, number: int) -> int:
        return active_of(self.router, part, number)  # type: ignore[arg-type]


def build_model(config: ModelConfig, router: Router, seed: int = 0) -> RoutedDecoder:
    """Build a decoder with initial weights: the same bits for the same arguments, whatever ran before.

    Raises:
        UserError: the router cannot build this shape.
    """
    state = torch.get_rng_state()
    # A plugin's own initialisation draws from the global generator.
    torch.manual_seed(stream(seed, "router").initial_seed())
    try:
        model = RoutedDecoder(config, router)
        checked_call(router, "initialise", type(None), model.initialise, seed)
    finally:
        torch.set_rng_state(state)
    return model
