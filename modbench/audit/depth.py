"""Probes 5, 6, 7 and 11: what a layer does to selected and to skipped tokens, and what it spends.

The reference is the layer's own plain block, run by plain loops on the selected tokens only, in their
order and at their positions.

B sequences, T tokens, D model width, N selected tokens, R sequences with selected tokens, K the most
tokens selected in one sequence.
"""

from collections.abc import Iterator, Sequence
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
    passes,
    ragged,
    unmoved,
    zero_routers,
)
from modbench.counting.counter import FlopCounter
from modbench.ledger import Ledger, Workload
from modbench.model.block import Block
from modbench.model.context import Context, Selection
from modbench.model.layer import Layer
from modbench.routing.build import RoutedDecoder

#: Relative rounding error of float64 when the input is subtracted from the output.
CANCELLED = 1e-13
#: Components computed for every token, those not linear in the number of tokens, and matmuls that carry
#: no label, as in the scores of a layer that states no ledger.
NOT_BY_TOKEN = ("router", "predictor", "attention.scores", "other")


@torch.no_grad()
def bypass(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 5: tokens that a layer shows as not selected leave it unchanged, bit for bit. No layer
    writes into its input."""
    skipped, altered, quiet = 0, 0, False
    inputs = list[Tensor]()

    def run(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
        inputs[:] = [x_BTD]
        return layer(x_BTD, context)  # type: ignore[no-any-return]

    for step in passes(subject.exact, few(tokens_BT), run=run):
        if not unmoved(inputs[0], step.x_BTD):
            layer = f"layer {step.number} ({type(step.layer).__name__})"
            return False, f"{layer} writes into its input ({step.rule})"
        if step.shown_BT is None:
            quiet |= step.selected_BT is not None
        else:
            skipped += int((~step.shown_BT).sum())
            altered += int((step.changed_BT & ~step.shown_BT).sum())
    if not skipped:
        unshown = "a layer leaves some tokens unchanged and does not show selected"
        return None, unshown if quiet else "no layer skips tokens"
    if altered == skipped:
        return False, (
            f"{altered} of {skipped} tokens shown as not selected are changed by their layer; a scheme "
            "that routes a part of a block must not show selected"
        )
    return altered == 0, f"{altered} of {skipped} skipped tokens changed"


@dataclass(frozen=True)
class Update:
    """The update of a layer's selected tokens: their input, what the layer added, what its plain block
    adds on its own, and what the gate multiplies (`gated`); (N, D) each."""

    layer: int
    rule: Selection
    x_ND: Tensor
    added_ND: Tensor
    delta_ND: Tensor
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
    # Where all tokens are selected, order and position, which are probe 7's, cannot be wrong.
    model, rules = (full, RULES[:1]) if "capacity" in taken else (subject.exact, RULES)
    worst = -1.0
    for update in updates(model, tokens_BT, rules):
        beyond = update.beyond(update.gated_ND).max().item()
        worst = max(worst, beyond)
        if beyond > ROUNDING:
            what = f"the update of layer {update.layer} is not gate x block output"
            return False, f"{what} (relative error {beyond:.2g})"
    if worst < 0:
        return subject.held(None, "no token is selected")
    unit, taken = subject.fresh(capacity=1.0, gate="scaled_sigmoid")
    if "gate" not in taken:
        figure = f"layer update = gate x block output (max relative error {worst:.2g})"
        return subject.held(True, figure)
    worst = 0.0
    for update in updates(zero_routers(unit), tokens_BT, RULES[:1]):
        scale = (update.x_ND + update.delta_ND).abs().max().item()
        worst = max(worst, (update.added_ND - update.gated_ND).abs().max().item() / scale)
    return subject.held(worst <= ROUNDING, f"at gate 1, layer and block differ by {worst:.2g}")


@torch.no_grad()
def order_and_position(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 7: selected tokens keep order and position: the update of each is a combination of the
    token and of the block's output among the selected tokens, in order and at their positions."""
    if not subject.skipping:
        return None, NO_SKIPPING
    worst, count = 0.0, 0
    for update in updates(subject.exact, few(tokens_BT)):
        beyond_N = update.beyond(update.x_ND, update.delta_ND)
        count += len(beyond_N)
        worst = max(worst, beyond_N.max().item())
        if off := int((beyond_N > ROUNDING).sum()):
            return False, (
                f"{off} of {len(beyond_N)} selected tokens of layer {update.layer} ({update.rule}) "
                f"differ from the block in their order, at their positions, by up to {worst:.1e}"
            )
    if not count:
        return subject.held(None, "no token is selected")
    return subject.held(True, f"{count} selected tokens keep order and position, up to {worst:.1e}")


def saving(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 11: in a layer that skips tokens, matmuls run for no more rows than the selected tokens fill
    when padded: the sequences with any, times the most that one of them has. The training rule is tested
    in training mode. Routers and predictors may see every token; attention scores are probe 9's."""
    if not subject.skipping:
        return None, NO_SKIPPING
    skipped, spent, everything = 0, 0, 0
    counter = FlopCounter()

    def run_counted(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
        nonlocal counter
        trains = context.selection == "topk"
        with FlopCounter() as counter, torch.set_grad_enabled(trains):
            return layer.train(trains)(x_BTD, context)  # type: ignore[no-any-return]

    for step in passes(subject.twin(), few(tokens_BT), run=run_counted):
        selected_BT, block = step.selected_BT, step.block
        if selected_BT is None or block is None:
            continue
        sent = [n for n in selected_BT.sum(1).tolist() if n]
        counts = step.context.trace.counts
        inner = {key: n for key, n in counts.items() if key[1] not in ("depth", "past")}
        workload = Workload(lengths=(max(sent, default=0),) * max(1, len(sent)), counts=inner)
        flops = _by_token(counter.ledger)
        allowed = _by_token(block.ledger(workload)) if sent else 0
        if flops > allowed:
            return False, (
                f"layer {step.number} spends {flops / max(1, allowed):.2f} times the FLOPs of the "
                f"{sum(sent)} of {selected_BT.numel()} tokens that it selects ({step.rule})"
            )
        skipped += int((~selected_BT).sum())
        spent += flops
        everything += _by_token(block.ledger(Workload.uniform(*selected_BT.shape)))
    if not skipped:
        return subject.held(None, "no layer skips tokens")
    return subject.held(True, f"routed layers spend {spent / everything:.3f} of the FLOPs of all tokens")


def _by_token(ledger: Ledger) -> int:
    """Forward FLOPs of the components that are linear in the number of tokens."""
    return sum(
        flops.full
        for (_, component, direction), flops in ledger
        if direction == "forward" and component not in NOT_BY_TOKEN
    )


def updates(
    model: RoutedDecoder, tokens_BT: Tensor, rules: Sequence[Selection] = RULES
) -> Iterator[Update]:
    """Yield the update of each layer that skips tokens and holds a plain block."""
    for step in passes(model, tokens_BT, rules):
        selected_BT, block = step.selected_BT, step.block
        if selected_BT is None or block is None or not selected_BT.any():
            continue
        x_ND, delta_ND = alone(block, step.x_BTD, selected_BT, step.rule)
        each_ND = x_ND, step.out_BTD[selected_BT] - x_ND, delta_ND, gated(step.layer, x_ND, delta_ND)
        yield Update(step.number, step.rule, *each_ND)


def gated(layer: nn.Module, x_ND: Tensor, delta_ND: Tensor) -> Tensor:
    """Return the tensor that the gate multiplies: ``delta_ND``, or ``x_ND + delta_ND`` if ``layer``
    declares it."""
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
