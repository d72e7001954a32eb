"""Probe 8: the loss has a gradient of the right scale for every router parameter.

B sequences, T tokens, D model width, E experts, V vocabulary, N selected.
"""

import copy
from collections.abc import Iterable, Mapping
from itertools import combinations, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.audit.depth import alone, gated
from modbench.audit.finding import Outcome, Step, Subject, holder, outer_routers, passes, seeded
from modbench.errors import several
from modbench.model.context import Context
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder
from modbench.routing.tokens import Noise

#: Smallest norm of a depth router's gradient, relative to a linear gate's. A sigmoid gate gives a
#: quarter; a softmax over the selected tokens, one over their number.
SMALLEST = 0.02
#: Sequence lengths long enough to tell these apart: with capacity 1, and with less.
TOKENS, TOKENS_PARTLY_SELECTED = 128, 512
#: Sequence length where it does not matter.
SHORT = 63
#: Relative rounding error of an auxiliary loss whose terms are summed in another order.
SUMMED = 1e-6
#: Largest entry of a gradient that is rounding in float64, relative to the largest of all parameters.
ROUNDED = 1e-13
NO_GATE = (
    ": no gate depends on its scores; multiply the output of a block or expert by a gate that does (not "
    "detached, and not renormalised over a single expert), or use no scorer"
)


def gradient(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 8: in a newly initialised model, cross-entropy alone has a gradient for the router.

    In a module named ``router`` (the scorer of the base classes), for one parameter or more; outside
    such modules, for each parameter with "router" in its name. In a layer that shows ``selected`` and
    has a linear router, the gradient has the scale of a linear gate's: sum_t <dL/dout_t, delta_t> x_t.

    All losses together reach one parameter of each of the `_groups`. If nothing is named ``router`` the
    verdict is ``unchecked``, since cross-entropy may have to reach some of them. Auxiliary losses depend
    neither on the order of sequences nor on padding, and have no gradient in padding.
    """
    if wrong := _equal_weights(subject.initial) or _dependent(subject.initial, subject.tokens(3, SHORT)):
        return False, wrong
    model, taken = subject.fresh(capacity=1.0)
    model.train()
    all_selected = "capacity" in taken or not subject.skipping
    tokens_BT = subject.tokens(3, TOKENS if all_selected else TOKENS_PARTLY_SELECTED)
    scales = _learn_text(model, tokens_BT)
    by_text = _reached(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # The router of a single expert has a zero gradient, as of a softmax over one.
    single = {n: p.grad for n, p in trained.items() if ".feed_forward." in n and p.shape[:1] == (1,)}
    idle = {name for name, grad in single.items() if grad is not None and not grad.any()}
    groups = _groups(model, trained)
    wanted = {name for name in trained if "router" in name.lower()}
    if lost := _lost(wanted - idle, by_text):
        return False, f"cross-entropy does not reach {lost}"
    if scales and min(scales) < SMALLEST:
        return False, f"the router's gradient is {min(scales):.1e} of a linear gate's"
    # A second pass, since compiled code runs backward only once.
    context = Context()
    model(tokens_BT[:, :SHORT], context)
    loss = context.trace.auxiliary_loss()
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    by_losses = by_text | _reached(model)
    for name, group in groups.items():
        if not group & by_losses and not group <= idle:
            return False, f"no loss reaches {name}"
    custom = {
        name  # experts of the base classes are no part of a router
        for name, group in groups.items()
        if group == {name} and not _of(model.get_submodule(name.rpartition(".")[0]), "modbench.routing.")
    }
    if not wanted and custom:
        return "unchecked", (
            f"no parameter has router in its name; cross-entropy reaches {len(by_text & custom)} of the "
            f"{len(custom)} parameters of the scheme's own classes, all losses together reach all"
        )
    if not wanted:
        scorers = (part for name, part in model.named_modules() if name.endswith(".router"))
        bare = next((f"the scorer ({type(part).__name__}) has no parameters" for part in scorers), "")
        return None, bare or "no router has a scorer, and no parameter has router in its name"
    if not wanted - idle:
        return None, "a softmax over one expert has no gradient"
    figure = f"cross-entropy reaches {several(len((wanted - idle) & by_text), 'router parameter')}"
    return True, figure + (f", gradient {min(scales):.2f} of a linear gate's" if scales else "")


def _reached(model: RoutedDecoder) -> frozenset[str]:
    """Names of parameters whose gradient is finite and above rounding."""
    most = {
        name: parameter.grad.abs().max().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.isfinite().all()
    }
    bound = ROUNDED * max(most.values(), default=0.0)
    return frozenset(name for name, value in most.items() if value > bound)


def _lost(wanted: set[str], reached: frozenset[str]) -> str:
    """Name the first router parameter that has no gradient, or module named ``router`` in which no
    parameter has one; empty if there is none."""
    for name in sorted(wanted - reached):
        before, inside, _ = f".{name}".partition(".router.")
        module = f"{before}.router"[1:]
        if not inside:
            return name
        if not any(other.startswith(f"{module}.") for other in reached):
            return module + NO_GATE
    return ""


def _groups(model: RoutedDecoder, trained: Iterable[str]) -> Mapping[str, set[str]]:
    """Groups of ``trained`` parameters by their first; some loss must reach one of each group. Each
    single parameter of scorers and of the scheme's own classes, and those of each module of PyTorch that
    the scheme's own classes hold, since an expert of several may be without tokens."""
    groups: dict[str, set[str]] = {}
    for name in trained:
        path, module = holder(model, name)
        if ".router." in f".{name}":
            groups[name] = {name}
        elif path and not _of(module, "modbench.model."):
            part = ".".join(name.split(".")[: path.count(".") + 2])
            groups.setdefault(part, set()).add(name)
    return {min(group): group for group in groups.values()}


def _of(module: nn.Module, package: str) -> bool:
    return type(module).__module__.startswith(package)


def _learn_text(model: RoutedDecoder, tokens_BT: Tensor) -> list[float]:
    """Run the backward pass of cross-entropy; return `_scale` of each layer that has one."""
    steps = []
    for step in passes(model, tokens_BT, ("topk",)):
        step.out_BTD.retain_grad()
        steps.append(step)
    head = model.embedding if model.head is None else model.head
    logits_BTV = F.linear(model.norm(step.out_BTD), head.weight)
    F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.roll(-1, 1).flatten()).backward()
    return [scale for scale in map(_scale, steps) if scale is not None]


def _scale(step: Step) -> float | None:
    """Norm of a linear depth router's gradient relative to a linear gate's; None if there is none."""
    selected_BT, block = step.shown_BT, step.block
    if selected_BT is None or block is None or not selected_BT.any():
        return None
    weights = [p for p in outer_routers(step.layer) if p.numel() == step.x_BTD.shape[-1]]
    if len(weights) != 1 or weights[0].grad is None or step.out_BTD.grad is None:
        return None
    x_ND, delta_ND = alone(block, step.x_BTD, selected_BT, "topk")
    slope_N = (step.out_BTD.grad[selected_BT] * gated(step.layer, x_ND, delta_ND)).sum(-1)
    return (weights[0].grad.norm() / (slope_N @ x_ND).norm()).item()


def _equal_weights(model: RoutedDecoder) -> str:
    """Name two matrices of one layer with the same random initial weights, such as experts drawn from
    one stream; empty if there are none."""
    for number, layer in enumerate(model.layers):
        drawn = [(n, p) for n, p in layer.named_parameters() if p.dim() > 1 and p.min() != p.max()]
        for (name, a), (second, b) in combinations(drawn, 2):
            if torch.equal(a, b):
                return f"layers.{number}.{name} and {second} start with the same weights"
    return ""


def _dependent(model: RoutedDecoder, tokens_BT: Tensor) -> str:
    """Describe an auxiliary loss or buffer that depends on the order of sequences or on padding; empty
    if there is none. Each layer is tested on the same input, since what earlier layers drop may depend
    on the order."""
    with torch.no_grad():
        steps = list(passes(model, tokens_BT, ("topk",)))
    for number, layer, x_BTD in ((step.number, step.layer, step.x_BTD) for step in steps):
        trace, first = _values(layer, x_BTD, tokens_BT)
        if not first:
            continue
        _, drawn = _values(layer, x_BTD, tokens_BT, seed=1)
        rolled, other = _values(layer, x_BTD.roll(1, 0), tokens_BT.roll(1, 0))
        shown, others = (each.tensors.get((number, "selected")) for each in (trace, rolled))
        # Not tested: a selection at random, by position in the batch.
        fair = shown is None or others is None or torch.equal(shown.roll(1, 0), others)
        changed = fair and _changed(first, drawn, other)
        when = "when the sequences of the batch are reordered"
        if not changed:
            rows, sequence = tokens_BT.shape
            lengths_B = torch.arange(1, rows + 1, device=x_BTD.device) * sequence // rows
            padding_BT = torch.arange(sequence, device=x_BTD.device) >= lengths_B[:, None]
            by_factor = []
            for factor in (1.0, 1.0, -3.0):
                padded_BTD = torch.where(padding_BT[..., None], factor * x_BTD, x_BTD).requires_grad_()
                trace, values = _values(layer, padded_BTD, tokens_BT, lengths_B)
                by_factor.append(values)
                loss = trace.auxiliary_loss()
                if isinstance(loss, Tensor) and loss.requires_grad:
                    slope_BTD = torch.autograd.grad(loss, padded_BTD, allow_unused=True)[0]
                    if slope_BTD is not None and bool(slope_BTD[padding_BT].any()):
                        return f"the auxiliary losses of layer {number} have a gradient in padding"
            changed, when = _changed(*by_factor), "with the content of padding"
        if changed:
            name, before, after = changed
            parts = layer.named_modules()  # a BatchNorm is the likely cause
            norms = (n for n, part in parts if isinstance(part, nn.modules.batchnorm._BatchNorm))
            cause = "".join(f"; {norm} is a BatchNorm" for norm in islice(norms, 1))
            return f"{name} of layer {number} changes from {before:.6g} to {after:.6g} {when}{cause}"
    return ""


def _values(
    layer: nn.Module,
    x_BTD: Tensor,
    tokens_BT: Tensor,
    lengths_B: Tensor | None = None,
    *,
    seed: int = 0,
) -> tuple[Trace, dict[str, float]]:
    """Trace of a training pass of a copy of ``layer``, its auxiliary losses, and a weighted sum of each
    floating-point buffer after it."""
    twin = copy.deepcopy(layer).train()
    context = Context(tokens_BT=tokens_BT, lengths_B=lengths_B)
    for part in twin.modules():
        if isinstance(part, Noise):
            part.draws += seed
    with seeded(seed, x_BTD.device):
        twin(x_BTD, context)
    values = {f"loss '{name}'": loss.item() for (_, name), loss in context.trace.losses.items()}
    for name, buffer in twin.named_buffers():
        if buffer.is_floating_point():
            weights_N = torch.arange(1, buffer.numel() + 1, dtype=torch.float64, device=buffer.device)
            total = buffer.detach().double().flatten() @ weights_N.sqrt()
            values[f"buffer '{name}'"] = total.item()
    return context.trace, values


def _changed(
    first: dict[str, float], again: dict[str, float], other: dict[str, float]
) -> tuple[str, float, float] | None:
    """The first value that ``again`` does not change, so that it is not random, and that ``other``
    changes by more than rounding."""
    for name, value in first.items():
        if again[name] == value and abs(other[name] - value) > SUMMED * abs(value):
            return name, value, other[name]
    return None
