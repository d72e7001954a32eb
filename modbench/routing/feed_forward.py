"""Any module as the feed-forward part of a block.

B sequences, T tokens, D model width.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload, component
from modbench.model.context import Context
from modbench.model.counted import checked_output, counted_ledger
from modbench.model.mlp import FeedForward
from modbench.routing.plugin_fault import defined_at


class CountedFeedForward(FeedForward):
    """A plain module from (B, T, D) to (B, T, D); its FLOPs are counted on the meta device."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("mlp", self.place.layer):
            y_BTD = self.module(x_BTD)
        return checked_output(self.module, self.place, y_BTD, x_BTD)

    def ledger(self, workload: Workload) -> Ledger:
        # Routing counts of the layer that holds it are not its own.
        return counted_ledger(self, self.place, replace(workload, counts={}), mixes=False)

    @property
    def has_closed_form(self) -> bool:
        return False


def as_feed_forward(router: Any, module: nn.Module, layer: int) -> FeedForward:
    """Return ``module``, what the ``feed_forward`` of ``router`` returned, as a part of a block. Raise a
    `UserError` if it is no module."""
    if isinstance(module, FeedForward):
        return module
    if not isinstance(module, nn.Module):
        raise UserError(
            f"router '{router.name}': feed_forward of layer {layer}{defined_at(router.feed_forward)} "
            f"returned {type(module).__name__}; it must return a torch.nn.Module"
        )
    return CountedFeedForward(module)
