"""Models from a shape and a router."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from modbench.errors import UserError
from modbench.ledger import Counts, Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.model.init import stream
from modbench.model.layer import Layer
from modbench.routing.plugin_fault import checked_call, defined_at
from modbench.routing.router import Router


class RoutedDecoder(Decoder):
    """A decoder whose layers ``router`` builds; what the layers report is validated. Raise a `UserError`
    if the router cannot build a layer for this shape."""

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
        parts = [part for part in self.modules() if isinstance(part, Layer)]
        return "closed form" if all(part.has_closed_form for part in parts) else "counted"

    def layer_ledger(self, number: int, workload: Workload) -> Ledger:
        layer: Layer = self.layers[number]  # type: ignore[assignment]
        where = f"ledger of layer {number}"
        ledger: Ledger = checked_call(self.router, where, Ledger, layer.ledger, workload)
        return ledger

    def layer_nominal_counts(self, number: int, workload: Workload) -> Counts:
        where = f"nominal_counts of layer {number}"
        layer: Layer = self.layers[number]  # type: ignore[assignment]
        counts: Counts = checked_call(self.router, where, Mapping, layer.nominal_counts, workload)
        return counts

    def active_of(self, part: nn.Module, number: int) -> int:
        where, report = f"active_parameters of layer {number}", part.active_parameters
        active: int = checked_call(self.router, where, int, report)  # type: ignore[arg-type]
        total = sum(parameter.numel() for parameter in part.parameters())
        if not 0 <= active <= total:
            raise UserError(
                f"router '{self.router.name}': {where}{defined_at(report)} is {active:,}; it "  # type: ignore[arg-type]
                f"must lie between 0 and the layer's {total:,} parameters"
            )
        return active


def build_model(config: ModelConfig, router: Router, seed: int = 0) -> RoutedDecoder:
    """Build a decoder with initial weights: the same bits for the same arguments, whatever ran before.
    Raise a `UserError` if the router cannot build this shape."""
    state = torch.get_rng_state()
    # A plugin's own initialisation draws from the global generator.
    torch.manual_seed(stream(seed, "router").initial_seed())
    try:
        model = RoutedDecoder(config, router)
        checked_call(router, "initialise", type(None), model.initialise, seed)
    finally:
        torch.set_rng_state(state)
    return model
