"""Probes 5, 6 and 7: what a layer does to the tokens that it selects, and to those that it does not.

Where a layer shows who is ``selected`` and holds the plain block that they enter, the block is given the
same tokens again by plain loops: in their own order, at their own positions, and no others.

B sequences, T tokens, D model width, R sequences that send any, K the most that one sends, N selected.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modbench.measure.audit.finding import (
    NOBODY_SKIPS,
    ROUNDING,
    RULES,
    Outcome,
    Subject,
    layer_by_layer,
    plain_block,
    selected,
    zero_routers,
)
from modbench.model.block import Block
from modbench.model.context import Context, Selection
from modbench.routing.build import RoutedDecoder

#: What float64 loses in subtracting the stream from what it has become.
CANCELLED = 1e-13
#: More likely a scheme that does not skip than one that means to and never does.
ALL_CHANGE = (
    "tokens shown as not selected are changed by their layer; a scheme that routes a part of a block "
    "shows nobody selected"
)


@torch.no_grad()
def bypass(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 5: a token that a layer says it did not select leaves that layer bit for bit unchanged. No
    layer writes into the stream that it is given: what comes before it is not its own to change. What
    layers tell the trace of who enters, and how many, can be so."""
    wrong = subject.misreported(tokens_BT)
    if wrong:
        return False, wrong
    skipped, altered, quiet = 0, 0, False
    for rule in RULES:
        context, written = Context(selection=rule), set[int]()
        stream = layer_by_layer(subject.exact, tokens_BT, context, written)
        for number, layer, before_BTD, after_BTD in stream:
            if written:
                return False, f"layer {number} ({type(layer).__name__}) writes into its input ({rule})"
            changed_BT = (after_BTD != before_BTD).any(-1)
            selected_BT = context.trace.tensors.get((number, "selected"))
            if selected_BT is None:
                quiet |= bool(changed_BT.any()) and not bool(changed_BT.all())
                continue
            skipped += int((~selected_BT).sum())
            altered += int((changed_BT & ~selected_BT).sum())
    if not skipped:
        return (
            None,
            "some skip a layer that shows nobody selected" if quiet else "no token skips a layer",
        )
    if altered == skipped:
        return False, f"{altered} of {skipped} {ALL_CHANGE}"
    return altered == 0, f"{altered} of {skipped} skipped tokens changed"


@dataclass(frozen=True)
class Entered:
    """The tokens that entered a layer: before it, what it added to them, and what its plain block adds
    to them by itself; (N, D) each."""

    layer: int
    x_ND: Tensor
    added_ND: Tensor
    delta_ND: Tensor
    #: What the gate multiplies: ``delta_ND``, or where the layer declares it, the stream and that.
    gated_ND: Tensor

    def beyond(self, *directions_ND: Tensor) -> Tensor:
        """The share of what was added to each token that is no multiple of the ``directions``, (N,); 0
        where that is lost in the rounding of the stream."""
        rest_ND, basis = self.added_ND, list[Tensor]()
        for direction_ND in directions_ND:
            for unit_ND in basis:
                direction_ND = direction_ND - (direction_ND * unit_ND).sum(-1, keepdim=True) * unit_ND
            unit_ND = direction_ND / direction_ND.norm(dim=-1, keepdim=True).clamp(min=1e-300)
            rest_ND = rest_ND - (rest_ND * unit_ND).sum(-1, keepdim=True) * unit_ND
            basis.append(unit_ND)
        lost_N = CANCELLED * self.x_ND.norm(dim=-1)
        rest_N = (rest_ND.norm(dim=-1) - lost_N).clamp(min=0)
        return (rest_N / self.added_ND.norm(dim=-1).clamp(min=1e-300)).nan_to_num(nan=torch.inf)


@torch.no_grad()
def unit_gate(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 6: with capacity 1 and gate 1 a depth-routed layer is the plain block. The gate is 1 where
    the router has an option ``gate`` that takes ``scaled_sigmoid``, and its weights are 0. Whatever the
    gate is, what a layer adds to a token must be a multiple of what its block adds: a layer that adds
    the stream once more, or scales it, doesn't. A layer whose definition is the other reading, x + gate
    * (x + delta), says so by a true attribute ``adds_residual``, and is held to that instead."""
    if not subject.skips:
        return None, NOBODY_SKIPS
    tokens_BT = tokens_BT[:3]
    full, taken = subject.fresh(capacity=1.0)
    all_enter = "capacity" in taken  # then neither order nor position, which are probe 7's, can be wrong
    model = full.double().eval() if all_enter else subject.exact
    worst, found = 0.0, 0
    for rule in RULES[:1] if all_enter else RULES:
        for entered in entering(model, tokens_BT, rule):
            found += len(entered.x_ND)
            beyond = entered.beyond(entered.gated_ND).max().item()
            worst = max(worst, beyond)
            if beyond > ROUNDING:
                return False, f"{beyond:.1e} of what layer {entered.layer} adds is not its block's"
    if not found:
        return subject.held(None, "no token enters a layer")
    unit, taken = subject.fresh(capacity=1.0, gate="scaled_sigmoid")
    if "gate" not in taken:
        figure = f"all but {worst:.1e} of what a layer adds is its block's, by a gate"
        return subject.held(True, figure)
    model = zero_routers(unit.double().eval())
    worst = 0.0
    for entered in entering(model, tokens_BT, "topk"):
        scale = (entered.x_ND + entered.delta_ND).abs().max().item()
        worst = max(worst, (entered.added_ND - entered.gated_ND).abs().max().item() / scale)
    return subject.held(worst <= ROUNDING, f"at gate 1 layer and block differ by {worst:.1e}")


@torch.no_grad()
def order_and_position(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 7: those that are selected keep order and position: what a layer adds to a token is made of
    the token and of what the block adds to it among the selected, in their order, where they stand."""
    if not subject.skips:
        return None, NOBODY_SKIPS
    worst, found = 0.0, 0
    for rule in RULES:
        for entered in entering(subject.exact, tokens_BT[:3], rule):
            found += len(entered.x_ND)
            beyond_N = entered.beyond(entered.x_ND, entered.delta_ND)
            worst = max(worst, beyond_N.max().item())
            off = int((beyond_N > ROUNDING).sum())
            if off:
                return False, (
                    f"{off} of {len(beyond_N)} selected tokens of layer {entered.layer} ({rule}) are "
                    f"not what their order and positions give, by {worst:.1e} at most"
                )
    if not found:
        return subject.held(None, "no token enters a layer")
    return subject.held(True, f"{found} selected tokens keep both, to {worst:.1e}")


def entering(model: RoutedDecoder, tokens_BT: Tensor, rule: Selection) -> Iterator[Entered]:
    """What enters each layer that shows it and holds a plain block."""
    context = Context(selection=rule)
    for number, layer, before_BTD, after_BTD in layer_by_layer(model, tokens_BT, context):
        selected_BT = selected(context, number, before_BTD, after_BTD)
        block = plain_block(layer)
        if selected_BT is None or block is None or not selected_BT.any():
            continue
        x_ND, delta_ND = alone(block, before_BTD, selected_BT, rule)
        gated_ND = gated(layer, x_ND, delta_ND)
        yield Entered(number, x_ND, after_BTD[selected_BT] - x_ND, delta_ND, gated_ND)


def gated(layer: nn.Module, x_ND: Tensor, delta_ND: Tensor) -> Tensor:
    """What the gate of ``layer`` multiplies, by its definition."""
    return x_ND + delta_ND if getattr(layer, "adds_residual", False) else delta_ND


@torch.no_grad()
def alone(block: Block, x_BTD: Tensor, selected_BT: Tensor, rule: Selection) -> tuple[Tensor, Tensor]:
    """The selected tokens, and what ``block`` adds to them when they are all there is; (N, D) each."""
    chosen = [row.nonzero().squeeze(1) for row in selected_BT]
    rows = [row for row, places in enumerate(chosen) if len(places)]
    counts = [len(chosen[row]) for row in rows]
    x_RKD = x_BTD.new_zeros(len(rows), max(counts), x_BTD.shape[2])
    positions_RK = torch.zeros(x_RKD.shape[:2], dtype=torch.long, device=x_BTD.device)
    for place, row in enumerate(rows):
        x_RKD[place, : counts[place]] = x_BTD[row, chosen[row]].detach()
        positions_RK[place, : counts[place]] = chosen[row]
    ragged = min(counts) < max(counts)
    context = Context(
        selection=rule,
        lengths_B=torch.tensor(counts, device=x_BTD.device) if ragged else None,
        positions_BT=positions_RK,
    )
    delta_RKD = block(x_RKD, context) - x_RKD
    first = zip(x_RKD, counts, strict=True), zip(delta_RKD, counts, strict=True)
    x_ND, delta_ND = (torch.cat([row_KD[:count] for row_KD, count in pairs]) for pairs in first)
    return x_ND, delta_ND
