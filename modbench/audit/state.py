"""Probe 10: everything that training changes is in ``state_dict``.

B sequences, T tokens, V vocabulary.
"""

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from modbench.audit.finding import RULES, ModelSubject, Outcome, Subject, device_of, seeded, unmoved
from modbench.audit.warmed import take_step
from modbench.errors import several
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.plugin_fault import shown
from modbench.routing.registry import build_router

#: Attributes of every module: torch's own, or in ``state_dict``.
_OF_TORCH = frozenset(vars(nn.Module()))
#: Classes of these packages hold no state of a scheme, nor do the modules that define them.
_NOT_OF_A_SCHEME = ("torch.", "modbench.", "builtins", "abc", "typing")
#: Times that two models that should be equal take a step, each on other tokens: state that one of them
#: lacks changes a decision by chance.
REPEATED = 3
#: Sequences and tokens of such a step of two copies: a threshold that moves by a hundredth of the
#: standard deviation of the scores changes four of a thousand decisions.
MANY = (8, 129)


def state(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 10: a model built from another seed, and from a router built from the same options, that
    loads the state after a few training steps gives the same logits under both rules, and the same
    state after each of `REPEATED` more steps, bit for bit.

    Also: training changes no attribute of the router, of a module, of their classes, and no global of
    the files that define them; scoring changes nothing and is not random; two equal training steps
    agree; activation checkpointing changes neither output nor state; every parameter and buffer is
    initialised, to the same bits each time; and the parts that all schemes share start as in the dense
    model.
    """
    wrong = badly_initialised(subject) or changed_by_scoring(subject) or _random_scores(subject)
    if wrong:
        return False, wrong
    model = subject.twin()
    _step(subject, model, 1)
    before = _attributes(model)  # after the first step: tables built on first use are no state
    _step(subject, model, 2)
    if changed := _changed(before, _attributes(model)):
        return False, f"training changes {changed}, which is not in state_dict"
    if wrong := _random_steps(subject) or _changed_by_repetition(subject):
        return False, wrong

    loaded = build_model(model.config, replace(model.router), subject.seed + 1)  # type: ignore[type-var]
    loaded = loaded.to(device=device_of(model), dtype=subject.dtype)
    loaded.load_state_dict(copy.deepcopy(model.state_dict()))
    unlike = _unlike(_attributes(model), _attributes(loaded))
    text_BT = subject.tokens(3, 63, 4)
    for rule in RULES:
        with torch.no_grad():
            one_BTV, two_BTV = (m.eval()(text_BT, Context(selection=rule)) for m in (model, loaded))
        if not torch.equal(one_BTV, two_BTV):
            most = (one_BTV - two_BTV).abs().max().item()
            return False, f"logits of the loaded model ({rule}) differ by {most:.1e}{unlike}"
    for draw in range(5, 5 + REPEATED):
        _step(subject, model, draw)
        _step(subject, loaded, draw)
        if differs := _differs(model.state_dict(), loaded.state_dict()):
            return False, f"{differs} differs {several(draw - 4, 'step')} after resuming{unlike}"
    return True, f"{several(len(loaded.state_dict()), 'tensor')} saved, loaded and resumed bit for bit"


def _step(subject: Subject, model: RoutedDecoder, draw: int) -> None:
    with seeded(draw, device_of(model)):
        take_step(model, subject.tokens(3, 33, draw))


@torch.no_grad()
def changed_by_scoring(subject: ModelSubject) -> str:
    """Name what changes when the same text is scored twice, in ``state_dict`` or in an attribute; empty
    if nothing does."""
    model = subject.twin().eval()
    saved = copy.deepcopy(model.state_dict())
    text_BT = subject.tokens(3, 33)
    for rule in RULES:
        model(text_BT, Context(selection=rule))
        # Tables built on first use are no state.
        held, saved = _attributes(model), copy.deepcopy(model.state_dict()) | saved
        model(text_BT, Context(selection=rule))
        changed = _differs(model.state_dict(), saved) or _changed(held, _attributes(model))
        if changed:
            return f"scoring ({rule}) changes {changed}"
    return ""


@torch.no_grad()
def _random_scores(subject: Subject) -> str:
    """Describe logits that differ between two equal passes in eval mode; empty if none do."""
    model = subject.twin().eval()
    text_BT = subject.tokens(3, 33)
    for rule in RULES:
        logits = []
        for seed in (1, 2):
            with seeded(seed, device_of(model)):
                logits.append(model(text_BT, Context(selection=rule)))
        if not unmoved(*logits):
            most = (logits[0] - logits[1]).abs().max().item()
            return (
                f"two equal passes ({rule}) differ by {most:.1e}; scoring must not draw random numbers"
            )
    return ""


def _random_steps(subject: Subject) -> str:
    """Describe what differs after one training step of two equal models, for which torch's generators
    are seeded; empty if nothing does."""
    for draw in range(10, 10 + REPEATED):
        first, second = subject.twin(), subject.twin()
        for model in (first, second):
            with seeded(draw, device_of(model)):
                take_step(model, subject.tokens(*MANY, draw))
        if differs := _differs(first.state_dict(), second.state_dict()):
            return (
                f"{differs} differs after two equal training steps, as with noise that no seed "
                "determines, or state outside the model"
            )
    return ""


def _changed_by_repetition(subject: Subject) -> str:
    """Name what differs when a layer's pass is repeated as by activation checkpointing (whose import in
    PyTorch takes a second); empty if nothing does."""
    model = subject.twin().train()
    context = Context()

    def run_seeded(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
        with seeded(layer.place.layer, x_BTD.device):
            out_BTD: Tensor = layer(x_BTD, context)
        return out_BTD.detach().requires_grad_()

    stream = model.layer_by_layer(subject.tokens(3, 33), context, run_seeded)
    for number, layer, before_BTD, first_BTD in stream:
        saved = copy.deepcopy(layer.state_dict())
        with context.trace.repeating():
            again_BTD = run_seeded(layer, before_BTD, context)
        if differs := _differs(layer.state_dict(), saved):
            return (
                f"layers.{number}.{differs} differs under activation checkpointing; update it only "
                "where context.trace.repeated is false"
            )
        if not unmoved(first_BTD, again_BTD):
            return f"the output of layer {number} differs under activation checkpointing"
    return ""


def _differs(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str:
    """Name the first tensor of ``first`` that differs in ``second``; empty if there is none."""
    return next((name for name, value in first.items() if not unmoved(value, second[name])), "")


def _attributes(model: LanguageModel) -> dict[str, list[Any]]:
    """Copies of the numbers, strings and tensors that the router, the modules, their classes and the
    files of these hold outside ``state_dict``, in containers too, by the attribute's name; none of a
    model without a router of ours."""
    if not isinstance(model, RoutedDecoder):  # no code of a scheme
        return {}
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    held: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in (vars(module) | module._buffers).items():
            if key not in _OF_TORCH:
                held[f"{name}.{key}"] = value
    held |= {f"router.{key}": value for key, value in vars(model.router).items()}
    for kind in _own_classes(model):
        held |= {f"class {kind.__name__}.{key}": value for key, value in vars(kind).items()}
        module = sys.modules.get(kind.__module__)
        if module is not None:  # of a class made by hand it is not known
            file = shown(Path(module.__file__ or ""))
            held |= {f"global {key} of {file}": value for key, value in vars(module).items()}
    return {
        key: [_copied(leaf) for leaf in tree_leaves(value) if id(leaf) not in saved]
        for key, value in held.items()
    }


def _own_classes(model: RoutedDecoder) -> Iterator[type]:
    """Yield the classes of the router and of the modules that its author wrote."""
    kinds = (kind for part in (model.router, *model.modules()) for kind in type(part).__mro__)
    for kind in dict.fromkeys(kinds):
        if not f"{kind.__module__}.".startswith(_NOT_OF_A_SCHEME):
            yield kind


def _unlike(first: Mapping[str, list[Any]], second: Mapping[str, list[Any]]) -> str:
    """Name the first attribute of ``first`` that ``second`` has, too, with another value; empty if there
    is none."""
    differing = (name for name in first if name in second and first[name] != second[name])
    return next((f"; {name} differs, which is not in state_dict" for name in differing), "")


def _copied(value: Any) -> Any:
    """A copy of ``value`` to compare later, as text, in which NaN equals NaN; None for what cannot be
    compared."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    return repr(value) if isinstance(value, bool | int | float | complex | str | list) else None


def _changed(before: Mapping[str, list[Any]], after: Mapping[str, list[Any]]) -> str:
    """Name the first attribute that differs; a new one has no earlier value. Empty if there is none."""
    return next((name for name, now in after.items() if before.get(name) != now), "")


def badly_initialised(subject: Subject) -> str:
    """Name a parameter or buffer that is never filled, that differs between two models of the same
    configuration, router and seed, or that starts unlike the dense model's; empty if there is none."""
    arguments = (subject.model.config, subject.model.router, subject.seed)
    plain = _tensors(build_model(*arguments))
    with _new_memory_is_nan():
        again = _tensors(build_model(*arguments))
    for name, value in again.items():
        # A value that is NaN on purpose is NaN in both models.
        if (value.isnan() & ~plain[name].isnan()).any():
            return f"{name} is never filled; set it in initialise"
        if not unmoved(value, plain[name]):
            return (
                f"{name} differs between two models of the same seed; draw it with torch, which is "
                "seeded then, and not with numpy or random"
            )
    if name := _unlike_dense(subject, plain):
        return (
            f"{name} starts unlike the dense model's; leave the parts of modbench.model as their own "
            "initialise fills them"
        )
    return ""


@contextmanager
def _new_memory_is_nan() -> Iterator[None]:
    # torch.use_deterministic_algorithms does the same, and imports the compiler, which takes a second.
    mode = torch.get_deterministic_debug_mode()
    deterministic: Any = torch.utils.deterministic  # type: ignore[attr-defined]
    fills = deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = fills


def _unlike_dense(subject: Subject, initial: Mapping[str, Tensor]) -> str:
    """Name a parameter of ``initial`` that the dense model has, too, in a module of the same class, with
    other values; empty if there is none."""
    dense = build_model(subject.model.config, build_router("vanilla"), subject.seed)
    for name, shared in _tensors(dense).items():
        for candidate in (name, re.sub(r"^(layers\.\d+\.)", r"\1block.", name)):
            value = initial.get(candidate)
            if value is None or value.shape != shared.shape:
                continue
            if _holder(subject.model, candidate) is _holder(dense, name) and not unmoved(value, shared):
                return candidate
    return ""


def _holder(model: RoutedDecoder, name: str) -> type:
    """The class that holds the parameter ``name``, itself or in modules of PyTorch."""
    while name := name.rpartition(".")[0]:
        kind = type(model.get_submodule(name))
        if not kind.__module__.startswith("torch."):
            return kind
    return RoutedDecoder


def _tensors(model: RoutedDecoder) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
