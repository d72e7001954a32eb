"""Layer: one depth of the decoder, with its closed form.

B sequences, T tokens, D model width.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from modbench.ledger import Counts, Ledger, Workload
from modbench.model.context import Context


class Layer(nn.Module, ABC):
    """One depth of the decoder. ``forward`` and ``ledger`` mirror each other, in one class.

    ``has_data_dependent_shapes``: in training, the number of routed tokens depends on the scores and is
    read from the device (``tolist``, ``item``, ``nonzero``). torch.compile skips such a layer; it runs
    eagerly.
    """

    has_data_dependent_shapes = False

    @abstractmethod
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """The residual stream after this layer, (B, T, D)."""

    @abstractmethod
    def ledger(self, workload: Workload) -> Ledger:
        """The closed form of what ``forward`` spends on ``workload`` (and its backward pass, in phase
        ``train``)."""

    def nominal_counts(self, workload: Workload) -> Counts:
        """The counts, as `Trace.count` takes them, that the training rule keeps to exactly, whatever
        the scores; none where routing decides how many. What ``ledger`` takes as nominal."""
        return {}

    def takes_gradient(self, workload: Workload) -> bool:
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


def with_upstream_grad(workload: Workload, part: nn.Module) -> Workload:
    """The load of what follows ``part``: where that is trained, the backward pass goes on to it."""
    return workload if workload.input_gradient else workload.after(trains(part))
