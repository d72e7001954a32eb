"""Probes 5, 6 and 7: what a layer does to selected and to skipped tokens.

The reference is the layer's own plain block, run by plain loops on the selected tokens only, in their
order and at their positions.

B sequences, T tokens, D model width, N selected tokens, R sequences with selected tokens, K the most
tokens selected in one sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from modbench.audit.finding import (
    NO_SKIPPING,
    ROUNDING,
    RULES,
    Outcome,
    Subject,
    few,
    plain_block,
    ragged,
    selected,
    unmoved,
    zero_routers,
)
from modbench.model.block import Block
from modbench.model.context import Context, Selection
from modbench.model.layer import Layer
from modbench.routing.build import RoutedDecoder

#: Relative rounding error of float64 when the input is subtracted from the output.
CANCELLED = 1e-13


@torch.no_grad()
def bypass(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 5: tokens that a layer shows as not selected leave it unchanged, bit for bit. No layer
    writes into its input."""
    tokens_BT = few(tokens_BT)
    skipped = 0
    altered = 0
    quiet = False
    for rule in RULES:
        context = Context(selection=rule)
        inputs = list[Tensor]()

        def run(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
            inputs.append(x_BTD)  # noqa: B023
            return layer(x_BTD, context)  # type: ignore[no-any-return]

        stream = subject.exact.layer_by_layer(tokens_BT, context, run)
        for number, layer, before_BTD, after_BTD in stream:
            if not unmoved(inputs[-1], before_BTD):
                return False, f"layer {number} ({type(layer).__name__}) writes into its input ({rule})"
            changed_BT = (after_BTD != before_BTD).any(-1)
            selected_BT = context.trace.tensors.get((number, "selected"))
            if selected_BT is None:
                quiet |= bool(changed_BT.any()) and not bool(changed_BT.all())
                continue
            skipped += int((~selected_BT).sum())
            altered += int((changed_BT & ~selected_BT).sum())
    if not skipped and quiet:
        return None, "a layer leaves some tokens unchanged and does not show selected"
    if not skipped:
        return None, "no layer skips tokens"
    if altered == skipped:
        return False, (
            f"{altered} of {skipped} tokens shown as not selected are changed by their layer; a scheme "
            "that routes a part of a block must not show selected"
        )
    return altered == 0, f"{altered} of {skipped} skipped tokens changed"


@dataclass(frozen=True)
class Update:
    """The update of a layer's selected tokens: their input, what the layer added, and what its plain
    block adds on its own; (N, D) each."""

    layer: int
    x_ND: Tensor
    added_ND: Tensor
    delta_ND: Tensor
    #: What the gate multiplies: ``delta_ND``, or ``x_ND + delta_ND`` if the layer declares it.
    gated_ND: Tensor

    def beyond(self, *directions_ND: Tensor) -> Tensor:
        """Relative norm of the part of each token's update outside the span of ``directions``, (N,); 0
        if it is below the rounding of the input."""
        basis_NDK, _ = torch.linalg.qr(torch.stack(directions_ND, dim=-1))
        along_NK1 = basis_NDK.transpose(1, 2) @ self.added_ND[..., None]
        rest_ND = self.added_ND - (basis_NDK @ along_NK1).squeeze(-1)
        lost_N = CANCELLED * self.x_ND.norm(dim=-1)
        rest_N = (rest_ND.norm(dim=-1) - lost_N).clamp(min=0)
        return (rest_N / self.added_ND.norm(dim=-1).clamp(min=1e-300)).nan_to_num(nan=torch.inf)


@torch.no_grad()
def unit_gate(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 6: with capacity 1 and gate 1 a depth-routed layer equals its plain block. The gate is 1
    where the router accepts the option ``gate="scaled_sigmoid"`` and its weights are 0.

    For any other gate, the update of a token must be a multiple of the block's output: a layer that adds
    or scales its input fails. A layer defined as x + gate * (x + delta) declares this by an attribute
    ``adds_residual = True`` and is compared with that."""
    if not subject.skipping:
        return None, NO_SKIPPING
    tokens_BT = few(tokens_BT)
    full, taken = subject.fresh(capacity=1.0)
    all_selected = "capacity" in taken  # then order and position, which are probe 7's, cannot be wrong
    model = full if all_selected else subject.exact
    worst = 0.0
    count = 0
    for rule in RULES[:1] if all_selected else RULES:
        for update in updates(model, tokens_BT, rule):
            count += len(update.x_ND)
            beyond = update.beyond(update.gated_ND).max().item()
            worst = max(worst, beyond)
            if beyond > ROUNDING:
                return False, (
                    f"the update of layer {update.layer} is not gate x block output (relative error "
                    f"{beyond:.2g})"
                )
    if not count:
        return subject.held(None, "no token is selected")
    unit, taken = subject.fresh(capacity=1.0, gate="scaled_sigmoid")
    if "gate" not in taken:
        figure = f"layer update = gate x block output (max relative error {worst:.2g})"
        return subject.held(True, figure)
    model = zero_routers(unit)
    worst = 0.0
    for update in updates(model, tokens_BT, "topk"):
        scale = (update.x_ND + update.delta_ND).abs().max().item()
        worst = max(worst, (update.added_ND - update.gated_ND).abs().max().item() / scale)
    return subject.held(worst <= ROUNDING, f"at gate 1, layer and block differ by {worst:.2g}")


@torch.no_grad()
def order_and_position(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 7: selected tokens keep order and position: the update of each is a combination of the
    token and of the block's output among the selected tokens, in order and at their positions."""
    if not subject.skipping:
        return None, NO_SKIPPING
    worst = 0.0
    count = 0
    for rule in RULES:
        for update in updates(subject.exact, few(tokens_BT), rule):
            count += len(update.x_ND)
            beyond_N = update.beyond(update.x_ND, update.delta_ND)
            worst = max(worst, beyond_N.max().item())
            off = int((beyond_N > ROUNDING).sum())
            if off:
                return False, (
                    f"{off} of {len(beyond_N)} selected tokens of layer {update.layer} ({rule}) "
                    f"differ from the block in their order, at their positions, by up to {worst:.1e}"
                )
    if not count:
        return subject.held(None, "no token is selected")
    return subject.held(True, f"{count} selected tokens keep order and position, up to {worst:.1e}")


def updates(model: RoutedDecoder, tokens_BT: Tensor, rule: Selection) -> Iterator[Update]:
    """Yield the update of each layer that skips tokens and holds a plain block."""
    context = Context(selection=rule)
    for number, layer, before_BTD, after_BTD in model.layer_by_layer(tokens_BT, context):
        selected_BT = selected(context, number, before_BTD, after_BTD)
        block = plain_block(layer)
        if selected_BT is None or block is None or not selected_BT.any():
            continue
        x_ND, delta_ND = alone(block, before_BTD, selected_BT, rule)
        added_ND = after_BTD[selected_BT] - x_ND
        yield Update(number, x_ND, added_ND, delta_ND, gated(layer, x_ND, delta_ND))


def gated(layer: nn.Module, x_ND: Tensor, delta_ND: Tensor) -> Tensor:
    """Return the tensor that the gate of ``layer`` multiplies."""
    return x_ND + delta_ND if getattr(layer, "adds_residual", False) else delta_ND


@torch.no_grad()
def alone(block: Block, x_BTD: Tensor, selected_BT: Tensor, rule: Selection) -> tuple[Tensor, Tensor]:
    """The selected tokens, and what ``block`` adds to them when it sees no others; (N, D) each."""
    places = [row.nonzero().squeeze(1) for row in selected_BT]
    x_RKD = pad_sequence([x_BTD[row, at].detach() for row, at in enumerate(places) if len(at)], True)
    positions_RK = pad_sequence([at for at in places if len(at)], True)
    counts = tuple(len(at) for at in places if len(at))
    context = Context(selection=rule, lengths_B=ragged(counts, positions_RK), positions_BT=positions_RK)
    delta_RKD = block(x_RKD, context) - x_RKD
    real_RK = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return x_RKD[real_RK], delta_RKD[real_RK]
