"""Any module as the feed-forward part of a block.

B sequences, T tokens, D model width.
"""

from dataclasses import replace

from torch import Tensor, nn

from modbench.ledger import Ledger, Workload, component
from modbench.model.context import Context
from modbench.model.counted import checked_output, counted_ledger
from modbench.model.mlp import FeedForward
from modbench.routing.hook_checks import expect, shown
from modbench.routing.router import Router


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


def as_feed_forward(router: Router, module: nn.Module) -> FeedForward:
    """Return ``module``, what the ``feed_forward`` of ``router`` returned, as a part of a block."""
    right = isinstance(module, nn.Module)
    expect(router, "feed_forward", right, shown(module), "a torch.nn.Module")
    return module if isinstance(module, FeedForward) else CountedFeedForward(module)
