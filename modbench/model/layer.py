"""Layer: one depth of the decoder, with its closed form.

B sequences, T tokens, D model width.
"""

from abc import ABC, abstractmethod
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from modbench.ledger import Counts, Ledger, Workload, matmul
from modbench.model.context import Context
from modbench.model.counted import Place, checked_output, counted_ledger


class Layer(nn.Module, ABC):
    """One depth of the decoder. ``forward`` and ``ledger``, if a layer states one, mirror each other.

    ``has_data_dependent_shapes``: in training, the number of routed tokens depends on the scores and is
    read from the device (``tolist``, ``item``, ``nonzero``). torch.compile skips such a layer; it runs
    eagerly.
    """

    has_data_dependent_shapes = False
    #: Tokens of a sequence attend to each other.
    mixes = True
    #: Set by the decoder, or by the block that holds a part.
    place = Place(0, 0)

    @abstractmethod
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Return the residual stream after this layer, (B, T, D)."""

    def ledger(self, workload: Workload) -> Ledger:
        """Return the FLOPs of `forward` for ``workload``, and of its backward pass in phase ``train``: a
        closed form, or if a layer has none, counted on the meta device. Raise a `UserError` if there is
        no closed form, and the meta device cannot run the layer."""
        return counted_ledger(self, self.place, workload, mixes=self.mixes)

    @property
    def has_closed_form(self) -> bool:
        """True if ``ledger`` is a closed form."""
        return type(self).ledger is not Layer.ledger

    def nominal_counts(self, workload: Workload) -> Counts:
        """Return the routed counts, as `Trace.count` takes them, that the training rule keeps to exactly
        whatever the scores; empty where the scores decide how many tokens are routed."""
        return {}

    def expected_counts(self, workload: Workload) -> Counts:
        """Return the routed counts that ``ledger`` assumes for a workload without counts: the nominal
        ones, and where the scores decide, those that the options aim at; empty if there is no aim."""
        return self.nominal_counts(workload)

    def takes_gradient(self, workload: Workload) -> bool:
        """Return True if the gradient of the output reaches a trained parameter of this layer. A layer
        that selected no token may pass it to none."""
        return trains(self)

    def active_parameters(self) -> int:
        """Return the number of parameters that process a token routed at every layer: all but the
        inactive ones of its parts. Override where a token is sent to some of several experts."""
        parts = (part for part in self.children() if isinstance(part, Layer))
        return size(self) - sum(size(part) - part.active_parameters() for part in parts)


def size(part: nn.Module) -> int:
    """Return the number of parameters of ``part``."""
    return sum(parameter.numel() for parameter in part.parameters())


def trains(part: nn.Module) -> bool:
    """Return True if any parameter of ``part`` is trained; frozen ones need no gradient."""
    return any(parameter.requires_grad for parameter in part.parameters())


def with_upstream_grad(workload: Workload, part: nn.Module) -> Workload:
    """Return the workload of what follows ``part``: where that is trained, the backward pass continues
    to it."""
    return workload if workload.input_gradient else workload.after(trains(part))


def weight_ledger(
    workload: Workload,
    layer: int,
    label: str,
    weight: Tensor,
    rows: int,
    *,
    input_gradient: bool | None = None,
) -> Ledger:
    """Return the FLOPs of the matmul of ``rows`` rows with ``weight`` (..., columns, inner)."""
    columns, inner = weight.shape[-2:]
    return matmul(
        workload,
        layer,
        label,
        rows=rows,
        inner=inner,
        columns=columns,
        input_gradient=input_gradient,
        weight_gradient=weight.requires_grad,
    )


def run_layer(layer: nn.Module, x_BTD: Tensor, context: Context) -> Tensor:
    """Run ``layer`` as the context asks: with activation checkpointing, only its input is kept for the
    backward pass; under torch.compile, a layer with data-dependent shapes runs eagerly."""
    if context.checkpoint:
        out_BTD = _run_checkpointed(layer, x_BTD, context)
    elif torch.compiler.is_compiling() and layer.has_data_dependent_shapes:
        out_BTD = _run_eagerly(layer, x_BTD, context)
    else:
        out_BTD = layer(x_BTD, context)
    return checked_output(layer, layer.place, out_BTD, x_BTD)  # type: ignore[arg-type]


@torch._disable_dynamo  # torch.compiler.disable would import the compiler here
def _run_eagerly(layer: nn.Module, x_BTD: Tensor, context: Context) -> Tensor:
    return layer(x_BTD, context)  # type: ignore[no-any-return]


def _run_checkpointed(layer: nn.Module, x_BTD: Tensor, context: Context) -> Tensor:
    # The whole forward pass is repeated, not only up to the last tensor needed: that point differs
    # between schemes.
    with set_checkpoint_early_stop(False):
        return checkpoint(  # type: ignore[no-any-return]
            context.programs.get(layer, layer),
            x_BTD,
            context,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), context.trace.repeating()),
        )
