"""Probe 12: the derivative of a layer is that of its output.

B sequences, T tokens, D model width.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modbench.audit.finding import Outcome, Subject, few, seeded
from modbench.errors import several
from modbench.model.context import Context
from modbench.model.layer import Layer

#: Steps of the central differences, relative to the size of what is moved. Where the two disagree, the
#: layer rounds to a fixed type, or jumps.
STEPS = (1e-5, 1e-6)
#: Largest relative difference of derivative and central difference that counts as rounding.
CLOSE = 1e-4


@dataclass(frozen=True)
class Slope:
    """How the output of a layer changes along one direction: its derivative, and central differences of
    the `STEPS`."""

    layer: int
    where: str
    derivative: float
    differences: tuple[float, ...]

    @property
    def is_smooth(self) -> bool:
        first, second = self.differences
        return abs(first - second) <= CLOSE * max(abs(first), abs(second))

    @property
    def off(self) -> float:
        """The difference, relative to the larger of the two."""
        larger = max(abs(self.derivative), abs(self.differences[0]))
        return abs(self.derivative - self.differences[0]) / larger if larger else 0.0


def derivative(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 12: with the selection held fixed, the derivative of each layer in training equals a central
    difference in float64: along its selected tokens, its skipped tokens, the weights of its routers, and
    its other weights. A difference is no failure, since a straight-through or detached gradient may be
    meant; the probe is ``unchecked`` then. Auxiliary losses are not part of the output."""
    slopes = list(_slopes(subject, few(tokens_BT)))
    smooth = [slope for slope in slopes if slope.is_smooth]
    wrong = [slope for slope in smooth if slope.off > CLOSE]
    if not smooth:
        return None, "a layer computes in a fixed type, in which central differences are rounding"
    if not wrong:
        return True, f"equals central differences in {several(len(smooth), 'direction')}"
    most = max(wrong, key=lambda slope: slope.off)
    places = ", ".join(dict.fromkeys(slope.where for slope in wrong))
    layers = ", ".join(dict.fromkeys(str(slope.layer) for slope in wrong))
    return "unchecked", (
        f"the gradient differs from a central difference by up to {most.off:.1%} (layer {layers}: "
        f"{places}); straight-through or detached: is it meant?"
    )


def _slopes(subject: Subject, tokens_BT: Tensor) -> Iterator[Slope]:
    context = Context()
    model = subject.exact.train()
    with torch.no_grad():
        stream = [
            (number, layer, before_BTD.clone(), context.trace.tensors.get((number, "selected")))
            for number, layer, before_BTD, _ in model.layer_by_layer(tokens_BT, context)
        ]
    model.eval()
    for number, layer, x_BTD, selected_BT in stream:
        yield from _of_layer(number, layer, x_BTD, selected_BT, tokens_BT, subject.seed)


def _of_layer(
    number: int, layer: Layer, x_BTD: Tensor, selected_BT: Tensor | None, tokens_BT: Tensor, seed: int
) -> Iterator[Slope]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

    weights_BTD = drawn(x_BTD)

    def output(
        moved: Mapping[str, Tensor], by: float, *, differentiate: bool = False
    ) -> tuple[float, Mapping[str, Tensor | None]]:
        """Weighted sum of the layer's output, and its gradients by name ("": of the input)."""
        twin = copy.deepcopy(layer).train()
        x = x_BTD.clone()
        named = {"": x} | dict(twin.named_parameters())
        with torch.no_grad():
            for name, direction in moved.items():
                named[name].add_(direction, alpha=by)
        x.requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate), seeded(seed, x.device):
            total = (twin(x, Context(tokens_BT=tokens_BT)) * weights_BTD).sum()
            if differentiate:
                total.backward()
        return total.item(), {name: tensor.grad for name, tensor in named.items()}

    _, gradients = output({}, 0.0, differentiate=True)
    moves: dict[str, dict[str, Tensor]] = {}
    all_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
    shown_BT = all_BT if selected_BT is None else selected_BT
    for where, these_BT in (("selected tokens", shown_BT), ("skipped tokens", ~shown_BT)):
        if these_BT.any():
            where = "input" if selected_BT is None else where
            moves[where] = {"": drawn(x_BTD) * x_BTD.std() * these_BT[..., None]}
    for name, parameter in layer.named_parameters():
        where = "gate" if "router" in name.lower() else "weights"
        moves.setdefault(where, {})[name] = drawn(parameter.detach()) * parameter.detach().std(
            correction=0
        )
    for where, moved in moves.items():
        along = (gradients[name] for name in moved)
        slope = sum(
            (direction * gradient).sum().item()
            for direction, gradient in zip(moved.values(), along, strict=True)
            if gradient is not None
        )
        differences = tuple((output(moved, by)[0] - output(moved, -by)[0]) / (2 * by) for by in STEPS)
        yield Slope(number, where, slope, differences)
