"""Probe 12: the derivative of a layer is that of its output.

B sequences, T tokens, D model width.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modbench.audit.finding import Outcome, Step, Subject, few, passes, seeded
from modbench.errors import several
from modbench.model.context import Context

#: Steps of the central differences, relative to the size of what is moved. Where the two disagree, the
#: layer rounds to a fixed type, or jumps.
STEPS = (1e-5, 1e-6)
#: The same where they agree, and not with the derivative: a type of few digits rounds both away. The
#: first that leaves the selection as it is counts.
COARSER = (1e-3, 1e-4)
#: Largest relative difference of derivative and central difference that counts as rounding.
CLOSE = 1e-4
#: Slopes are compared as if they were at least so large; float64 rounds smaller ones.
SMALL = 1e-3
#: Noise on the input of a layer, relative to its size: without it, tokens of equal text have equal
#: scores, and each step selects another one of them.
UNTIED = 1e-2


@dataclass(frozen=True)
class Slope:
    """Change of the output of a layer along one direction. ``off``: the difference of its derivative
    and a central difference, relative to the larger one. ``smooth``: central differences agree."""

    layer: int
    where: str
    off: float
    smooth: bool


def derivative(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 12: with the selection held fixed, the derivative of each layer in training equals a central
    difference in float64: along its selected tokens, its skipped tokens, the weights of its routers, and
    its other weights. A difference is no failure, since a straight-through or detached gradient may be
    meant; the probe is ``unchecked`` then. Auxiliary losses are not part of the output."""
    tokens_BT = few(tokens_BT)
    with torch.no_grad():
        steps = list(passes(subject.exact, tokens_BT, ("topk",)))
    slopes = [slope for step in steps for slope in _slopes(step, tokens_BT, subject.seed)]
    smooth = [slope for slope in slopes if slope.smooth]
    if wrong := [slope for slope in smooth if slope.off > CLOSE]:
        most = max(slope.off for slope in wrong)
        places = ", ".join(dict.fromkeys(slope.where for slope in wrong))
        layers = ", ".join(dict.fromkeys(str(slope.layer) for slope in wrong))
        return "unchecked", (
            f"the gradient differs from a central difference by up to {most:.1%} (layer {layers}: "
            f"{places}); straight-through or detached: is it meant?"
        )
    if rounded := {slope.where for slope in slopes} - {slope.where for slope in smooth}:
        places = ", ".join(sorted(rounded))
        return None, f"computes in a fixed type, where central differences are rounding ({places})"
    return True, f"equals central differences in {several(len(smooth), 'direction')}"


def _slopes(step: Step, tokens_BT: Tensor, seed: int) -> Iterator[Slope]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(like: Tensor) -> Tensor:
        """A direction of the size of ``like``."""
        noise = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
        return noise * (like.detach().square().mean().sqrt() or 1.0)

    x_BTD = step.x_BTD + UNTIED * drawn(step.x_BTD)
    weights_BTD = drawn(x_BTD)

    def output(
        moved: Mapping[str, Tensor], by: float, *, differentiate: bool = False
    ) -> tuple[float, Mapping[str, Tensor | None], Mapping[str, Tensor]]:
        """Weighted sum of the layer's output, its gradients by name ("": of the input), and what it
        selects."""
        twin, context = copy.deepcopy(step.layer).train(), Context(tokens_BT=tokens_BT)
        named = {"": x_BTD.clone()} | dict(twin.named_parameters())
        with torch.no_grad():
            for name, direction in moved.items():
                named[name].add_(direction, alpha=by)
        x = named[""].requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate), seeded(seed, x.device):
            total = (twin(x, context) * weights_BTD).sum()
            if differentiate:
                total.backward()
        shown = {key: tensor for (_, key), tensor in context.trace.tensors.items()}
        selects = {key: tensor for key, tensor in shown.items() if not tensor.is_floating_point()}
        return total.item(), {name: tensor.grad for name, tensor in named.items()}, selects

    def difference(moved: Mapping[str, Tensor], by: float) -> tuple[float, bool]:
        """The central difference, and True if the layer selects the same on both sides."""
        (more, _, these), (less, _, others) = output(moved, by), output(moved, -by)
        same = all(torch.equal(these[key], others[key]) for key in these)
        return (more - less) / (2 * by), same

    _, gradients, selects = output({}, 0.0, differentiate=True)
    sides = {"input": torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)}
    if "selected" in selects:
        sides = {"selected tokens": selects["selected"], "skipped tokens": ~selects["selected"]}
    sides = {where: these_BT for where, these_BT in sides.items() if these_BT.any()}
    moves = {where: {"": drawn(x_BTD) * these_BT[..., None]} for where, these_BT in sides.items()}
    for name, parameter in step.layer.named_parameters():
        where = "gate" if "router" in name.lower() else "weights"
        moves.setdefault(where, {})[name] = drawn(parameter)
    for where, moved in moves.items():
        slope = sum(
            (direction * gradient).sum().item()
            for name, direction in moved.items()
            if (gradient := gradients[name]) is not None
        )
        first, second = (difference(moved, by)[0] for by in STEPS)
        size = max(*map(abs, (slope, first, second)), SMALL)
        off, smooth = abs(slope - first) / size, abs(first - second) <= CLOSE * size
        if smooth and off > CLOSE:
            coarser = (difference(moved, by) for by in COARSER)
            coarse = next((value for value, same in coarser if same), first)
            smooth = abs(coarse - first) <= abs(slope - first) / 10
        yield Slope(step.number, where, off, smooth)
