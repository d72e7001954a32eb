"""Probe 8: the loss reaches what routes, and reaches it at its full strength.

B sequences, T tokens, D model width, V vocabulary, N selected.
"""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.measure.audit.depth import alone, gated
from modbench.measure.audit.finding import (
    Outcome,
    Subject,
    layer_by_layer,
    own_parameters,
    plain_block,
    routers,
)
from modbench.measure.audit.router_rows import cut_row
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder

#: The smallest gradient of a depth router, relative to that of a linear gate. A sigmoid's is a quarter;
#: that of a softmax over the selected is one over their number.
SMALLEST = 0.02
#: How many tokens there must be to tell these apart: with all of them selected, and otherwise.
TOKENS, TOKENS_OF_A_SHARE = 128, 512
#: The part of an auxiliary loss that may come from the order in which its terms are summed.
SUMMED = 1e-6


def gradient(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 8: on a model with first weights, cross-entropy alone reaches each parameter named a
    router's; of a router's weight (E, D), each row that it hangs on and whose expert takes tokens, by
    the ``load`` that the layer shows. In a layer that shows ``selected`` and has a linear router, the
    gradient is of the scale of a linear gate's: sum_t <dL/dout_t, delta_t> x_t. Auxiliary losses
    reach what is named a predictor's, one or the other all that the scheme's own classes hold, and where
    none of these is named a router's the verdict is ``unchecked``: some may be meant for cross-entropy
    and get none. Auxiliary losses come to the same whatever the order of sequences, so that no sequence
    teaches alone, and whatever stands in padding, which takes no gradient of them.
    """
    first = subject.fresh()[0]
    wrong = _twins(first) or _uneven(first.double(), subject.tokens(3, TOKENS))
    wrong = wrong or _padding_teaches(first.double(), subject.tokens(3, TOKENS))
    if wrong:
        return False, wrong
    model, taken = subject.fresh(capacity=1.0)
    model = model.double().train()
    names = [n for n, p in routers(model).items() if p.requires_grad]
    predictors = [n for n, p in model.named_parameters() if "predictor" in n and p.requires_grad]
    own = own_parameters(model)
    all_enter = "capacity" in taken or not subject.skips
    tokens_BT = subject.tokens(3, TOKENS if all_enter else TOKENS_OF_A_SHARE)
    before, context = copy.deepcopy(model), Context()
    kept: list[tuple[int, nn.Module, Tensor, Tensor]] = []
    x_BTD = model.embedding(tokens_BT)
    for number, layer, before_BTD, after_BTD in layer_by_layer(model, tokens_BT, context):
        x_BTD = after_BTD
        x_BTD.retain_grad()
        kept.append((number, layer, before_BTD, after_BTD))
    head = model.embedding if model.head is None else model.head
    logits_BTV = F.linear(model.norm(x_BTD), head.weight)
    targets_BT = tokens_BT.roll(-1, 1)
    F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()).backward()
    parameters = dict(model.named_parameters())
    idle = {name for name, parameter in parameters.items() if _idle(name, parameter)}
    asked = [name for name in names if name not in idle]
    lost = [name for name in asked if not _reached(parameters[name])]
    if lost:
        return False, f"cross-entropy does not reach {lost[0]}"
    cut = cut_row(before, tokens_BT, model, context)
    if cut:
        return False, cut
    by_text = [name for name in own if _reached(parameters[name])]
    scales = [scale for entry in kept if (scale := _scale(*entry, context)) is not None]
    if scales and min(scales) < SMALLEST:
        return False, f"the router's gradient is {min(scales):.1e} of a linear gate's"
    auxiliary = context.trace.auxiliary_loss()
    if isinstance(auxiliary, Tensor) and auxiliary.requires_grad:
        # A pass of its own: what is compiled goes backward once.
        context = Context()
        for _ in layer_by_layer(model, tokens_BT, context):
            pass
        auxiliary = context.trace.auxiliary_loss()
        if isinstance(auxiliary, Tensor):
            auxiliary.backward()
    taught = {*predictors, *own}
    lost = [n for n in parameters if n in taught and not _reached(parameters[n]) and n not in idle]
    if lost:
        return False, f"no loss reaches {lost[0]}"
    if not names and own:
        return "unchecked", (
            f"no parameter is named a router's; cross-entropy reaches {len(by_text)} of the {len(own)} "
            "that are the scheme's own, some loss all"
        )
    if not names:
        return None, "no parameter is named a router's"
    if not asked:
        return None, "a softmax over one expert has nothing to choose"
    figure = f"cross-entropy reaches {len(asked)} router parameters"
    return True, figure + (f", {min(scales):.2f} of a linear gate's" if scales else "")


def _reached(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


def _idle(name: str, parameter: nn.Parameter) -> bool:
    """Whether it scores one expert alone and takes a gradient of 0: a softmax over one has no slope."""
    gradient = parameter.grad
    one = ".feed_forward." in name and parameter.shape[:1] == (1,)
    return one and gradient is not None and not bool(gradient.any())


def _scale(
    number: int, layer: nn.Module, before_BTD: Tensor, after_BTD: Tensor, context: Context
) -> float | None:
    """The norm of a linear router's gradient over that of a linear gate's; None where there is none."""
    selected_BT, block = context.trace.tensors.get((number, "selected")), plain_block(layer)
    if selected_BT is None or block is None or not selected_BT.any():
        return None
    inside = {id(parameter) for parameter in block.parameters()}
    width = before_BTD.shape[-1]
    own = [p for p in routers(layer).values() if id(p) not in inside and p.numel() == width]
    if len(own) != 1 or own[0].grad is None or after_BTD.grad is None:
        return None
    x_ND, delta_ND = alone(block, before_BTD, selected_BT, "topk")
    slope_N = (after_BTD.grad[selected_BT] * gated(layer, x_ND, delta_ND)).sum(-1)
    linear_D = slope_N @ x_ND
    return (own[0].grad.norm() / linear_D.norm()).item()


def _twins(model: RoutedDecoder) -> str:
    """Two matrices of one layer that start with the same random weights: experts that never differ, or
    a router that starts as another's copy; empty if there are none."""
    for number, layer in enumerate(model.layers):
        drawn = [(n, p) for n, p in layer.named_parameters() if p.dim() > 1 and p.min() != p.max()]
        for (one, a), (other, b) in itertools.combinations(drawn, 2):
            if torch.equal(a, b):
                return f"layers.{number}.{one} and {other} start with the same weights: name them apart"
    return ""


@torch.no_grad()
def _uneven(model: RoutedDecoder, tokens_BT: Tensor) -> str:
    """An auxiliary loss or buffer that another order of sequences changes; empty if there is none. Each
    layer is asked by itself, on the same stream: what an earlier one drops may well depend on the order.
    What is drawn at random is not asked."""
    streams = [
        (number, layer, before_BTD)
        for number, layer, before_BTD, _ in layer_by_layer(
            copy.deepcopy(model).eval(), tokens_BT, Context()
        )
    ]
    for number, layer, x_BTD in streams:
        first, selected = _losses(layer, x_BTD, tokens_BT, seed=0)
        if not first:
            continue
        drawn, _ = _losses(layer, x_BTD, tokens_BT, seed=1)
        rolled, others = _losses(layer, x_BTD.roll(1, 0), tokens_BT.roll(1, 0), seed=0)
        if any(not torch.equal(shown.roll(1, 0), others[name]) for name, shown in selected.items()):
            continue  # selected by lot: it falls on a place, whoever stands there
        for key, value in first.items():
            if drawn[key] == value and abs(rolled[key] - value) > SUMMED * abs(value):
                return (
                    f"{key[1]} of layer {number} is {value:.6g} and {rolled[key]:.6g} when "
                    "sequences change places: not all of them teach alike"
                )
    return ""


def _padding_teaches(model: RoutedDecoder, tokens_BT: Tensor) -> str:
    """An auxiliary loss or buffer that padding has a part in; empty if there is none."""
    sequences, sequence = tokens_BT.shape
    lengths_B = torch.tensor([sequence * (n + 1) // sequences for n in range(sequences)])
    lengths_B = lengths_B.to(tokens_BT.device)
    padding_BT = torch.arange(sequence, device=tokens_BT.device) >= lengths_B[:, None]
    with torch.no_grad():
        stream = list(layer_by_layer(copy.deepcopy(model).eval(), tokens_BT, Context()))
    for number, layer, before_BTD, _ in stream:
        losses, buffers = [], []
        for factor in (1.0, -3.0):
            x_BTD = torch.where(padding_BT[..., None], factor * before_BTD, before_BTD).requires_grad_()
            context = Context(tokens_BT=tokens_BT, lengths_B=lengths_B)
            with torch.random.fork_rng(devices=[x_BTD.device] if x_BTD.is_cuda else []):
                torch.manual_seed(0)
                own = copy.deepcopy(layer).train()
                own(x_BTD, context)
            buffers.append(_moved(own))
            loss = context.trace.auxiliary_loss()
            if not isinstance(loss, Tensor):
                continue
            losses.append(loss.item())
            slope = (
                torch.autograd.grad(loss, x_BTD, allow_unused=True)[0] if loss.requires_grad else None
            )
            if slope is not None and bool(slope[padding_BT].any()):
                return f"padding takes a gradient of the auxiliary losses of layer {number}"
        for (_, name), value in buffers[0].items():
            if abs(buffers[1][0, name] - value) > SUMMED * abs(value):
                return f"{name} of layer {number} is moved by padding"
        if len(losses) == 2 and abs(losses[0] - losses[1]) > SUMMED * abs(losses[0]):
            return (
                f"the auxiliary losses of layer {number} are {losses[0]:.6g} and {losses[1]:.6g} with "
                "other padding"
            )
    return ""


def _losses(
    layer: nn.Module, x_BTD: Tensor, tokens_BT: Tensor, *, seed: int
) -> tuple[dict[tuple[int, str], float], dict[int, Tensor]]:
    """The auxiliary losses of ``layer`` in training, as the trace has them, the buffers that training
    moves, and who was selected."""
    context, own = Context(tokens_BT=tokens_BT), copy.deepcopy(layer).train()
    with torch.random.fork_rng(devices=[x_BTD.device] if x_BTD.is_cuda else []):
        torch.manual_seed(seed)
        own(x_BTD, context)
    losses = {(at, f"loss '{name}'"): v.item() for (at, name), v in context.trace.losses.items()}
    losses |= _moved(own)
    shown = context.trace.tensors.items()
    return losses, {depth: value for (depth, name), value in shown if name == "selected"}


def _moved(layer: nn.Module) -> dict[tuple[int, str], float]:
    """A number to each floating-point buffer of ``layer``, by which two are told apart."""
    found = {}
    for name, buffer in layer.named_buffers():
        if buffer.is_floating_point():
            weights = torch.arange(1, buffer.numel() + 1, dtype=torch.float64, device=buffer.device)
            found[0, f"buffer '{name}'"] = (
                (buffer.detach().double().flatten() * weights.sqrt()).sum().item()
            )
    return found
