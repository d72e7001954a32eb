"""A gradient that is cut for one expert alone: a part of probe 8, which asks whole parameters first.

That a row of a router's weight takes no gradient is no fault by itself: its expert may do nothing, or
have a gate that is constant. It is one where the loss goes up and down with that row.

B sequences, T tokens, D model width, E experts.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.measure.audit.finding import layer_by_layer, routers
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder

#: By how much of itself a row is moved. A choice that tips over at the first is still at the second.
STEPS = (1e-3, 1e-5)
#: What float64 loses in the loss, and how far from a straight line the loss may be: a choice that tips
#: over is a jump.
ROUNDED, STRAIGHT = 1e-13, 0.05


def cut_row(first: RoutedDecoder, tokens_BT: Tensor, model: RoutedDecoder, context: Context) -> str:
    """A row of a router's weight (E, D) that cross-entropy hangs on and does not reach, though tokens go
    to its expert; empty if there is none. ``model`` has the gradients of one pass, of which ``context``
    knows where the tokens went; ``first`` is as it was before."""
    found = list(_rows(model, context))
    if not found:
        return ""
    again, context = copy.deepcopy(first), Context()  # what is drawn, is drawn alike from here on
    loss = _loss(again, tokens_BT, context)
    loss.backward()
    still = {(name, row) for name, row, _ in _rows(again, context)}
    for name, row, tokens in found:
        if (name, row) in still and _hangs_on(first, tokens_BT, name, row, loss.item()):
            return (
                f"cross-entropy does not reach row {row} of {name}, to whose expert {tokens} tokens go"
            )
    return ""


def _rows(model: RoutedDecoder, context: Context) -> Iterator[tuple[str, int, int]]:
    """Parameter, row and tokens of each expert that tokens go to and whose row has no gradient, where
    other rows have one."""
    for number, layer in enumerate(model.layers):
        load_E = context.trace.tensors.get((number, "load"))
        for name, parameter in routers(layer).items():
            shape = None if load_E is None else (*load_E.shape, model.config.width)
            if load_E is None or parameter.grad is None or parameter.shape != shape:
                continue
            reached_E = parameter.grad.any(1)
            if reached_E.any():
                for row in (~reached_E & (load_E.to(reached_E.device) > 0)).nonzero().flatten().tolist():
                    yield f"layers.{number}.{name}", row, int(load_E[row])


def _loss(model: RoutedDecoder, tokens_BT: Tensor, context: Context) -> Tensor:
    """Cross-entropy in training, with the same random numbers each time."""
    with torch.random.fork_rng(devices=[tokens_BT.device] if tokens_BT.is_cuda else []):
        torch.manual_seed(0)
        x_BTD = model.embedding(tokens_BT)
        for *_, after_BTD in layer_by_layer(model, tokens_BT, context):
            x_BTD = after_BTD
    head = model.embedding if model.head is None else model.head
    logits_BTV = F.linear(model.norm(x_BTD), head.weight)
    return F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.roll(-1, 1).flatten())


@torch.no_grad()
def _hangs_on(first: RoutedDecoder, tokens_BT: Tensor, name: str, row: int, loss: float) -> bool:
    """Whether a small step of the row moves the loss, as far back as forth, and half as far by half."""

    def moved(step: float) -> float:
        model = copy.deepcopy(first)  # a pass in training moves averages and biases
        model.get_parameter(name)[row] *= 1 + step
        return _loss(model, tokens_BT, Context()).item() - loss

    for step in STEPS:
        forth = moved(step)
        if abs(forth) <= ROUNDED * abs(loss):
            continue
        others = -moved(-step), 2 * moved(step / 2)
        if all(abs(other - forth) <= STRAIGHT * abs(forth) for other in others):
            return True
    return False
