"""Models from a shape and a router."""

from typing import Any

import torch
from torch import nn

from modbench.errors import FAULTS, UserError
from modbench.ledger import Counts, Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.model.init import stream
from modbench.routing.plugin_validation import active_of, built_layer, ledger_of, nominal_counts_of
from modbench.routing.router import Router


class RoutedDecoder(Decoder):
    """A decoder whose layers ``router`` builds; what the layers report is validated.

    Raises:
        UserError: the router can't build a layer for this shape.
    """

    def __init__(self, config: ModelConfig, router: Router) -> None:
        layers = (built_layer(router, config, number) for number in range(config.layers))
        super().__init__(config, layers)
        self.router = router

    def identity(self) -> dict[str, Any]:
        return {"router": self.router.name, **self.router.options(), **super().identity()}

    def layer_ledger(self, number: int, workload: Workload) -> Ledger:
        return ledger_of(self.router, self.layers[number], number, workload)  # type: ignore[arg-type]

    def layer_nominal_counts(self, number: int, workload: Workload) -> Counts:
        return nominal_counts_of(self.router, self.layers[number], number, workload)  # type: ignore[arg-type]

    def active_of(self, part: nn.Module, number: int) -> int:
        return active_of(self.router, part, number)  # type: ignore[arg-type]


def build_model(config: ModelConfig, router: Router, seed: int = 0) -> RoutedDecoder:
    """Build a decoder with initial weights: the same bits for the same arguments, whatever ran before.

    Raises:
        UserError: the router can't build this shape.
    """
    state = torch.get_rng_state()
    # A plugin's own initialisation draws from the global generator.
    torch.manual_seed(stream(seed, "router").initial_seed())
    try:
        model = RoutedDecoder(config, router)
        try:
            model.initialise(seed)
        except UserError:
            raise
        except FAULTS as error:
            raise UserError(
                f"router '{router.name}' raised {type(error).__name__}: {error} in initialise; fix it"
            ) from error
    finally:
        torch.set_rng_state(state)
    return model
