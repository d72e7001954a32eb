"""Probe 10: everything that training changes is in ``state_dict``.

B sequences, T tokens, V vocabulary.
"""

import copy
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from modbench.audit import fresh
from modbench.audit.finding import (
    RULES,
    ModelSubject,
    Outcome,
    Subject,
    device_of,
    holder,
    most,
    passes,
    rebuilt,
    seeded,
    unmoved,
)
from modbench.audit.warmed import take_step
from modbench.errors import several
from modbench.model.context import Context, Selection
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router

#: Times that two models that should be equal take a step, each on other tokens: state that one of them
#: lacks changes a decision by chance.
REPEATED = 3
#: Sequences and tokens of such a step of two copies: a threshold that moves by a hundredth of the
#: standard deviation of the scores changes four of a thousand decisions.
MANY = (8, 129)
#: The same of a step after resuming: a capacity that falls by a thousandth per step is another number
#: of tokens after a few.
LONG = (2, 257)
NO_STATE = "scoring must draw no random numbers and keep no state"


def state(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 10: a model built from another seed, and from a router built from the same options, that
    loads the state after a few training steps gives the same logits under both rules, and the same
    state after each of `REPEATED` more steps, bit for bit. So do the logits in a process of its own
    (`differs_in_a_fresh_process`).

    Also: scoring changes nothing and is not random; two equal training steps agree; activation
    checkpointing changes neither output nor state; every parameter and buffer is initialised, to the
    same bits each time; and the parts that all schemes share start as in the dense model.
    """
    wrong = badly_initialised(subject) or changed_by_scoring(subject)
    if wrong := wrong or _random_steps(subject) or _changed_by_repetition(subject):
        return False, wrong
    model = subject.twin()
    for draw in (1, 2):
        _step(subject, model, draw)
    texts = subject.tokens(3, 63, 3), subject.tokens(3, 63, 4)
    elsewhere = fresh.can_be_imported(model.router)
    if elsewhere and (wrong := fresh.differs_in_a_fresh_process(model, texts)):
        return False, wrong
    loaded = rebuilt(model, subject.seed + 1)
    for rule in RULES:
        with torch.no_grad():
            one_BTV, two_BTV = (m.eval()(texts[1], Context(selection=rule)) for m in (model, loaded))
        if not torch.equal(one_BTV, two_BTV):
            return False, f"logits of the loaded model ({rule}) differ by {most(one_BTV, two_BTV)}"
    for draw in range(5, 5 + REPEATED):
        _step(subject, model, draw, LONG)
        _step(subject, loaded, draw, LONG)
        if differs := _differs(model.state_dict(), loaded.state_dict()):
            return False, f"{differs} differs {several(draw - 4, 'step')} after resuming"
    figure = f"{several(len(loaded.state_dict()), 'tensor')} saved, loaded and resumed bit for bit"
    return True, figure + ("" if elsewhere else "; not in another process, which can't import the class")


def _step(subject: Subject, model: RoutedDecoder, draw: int, size: tuple[int, int] = (3, 33)) -> None:
    with seeded(draw, device_of(model)):
        take_step(model, subject.tokens(*size, draw))


@torch.no_grad()
def changed_by_scoring(subject: ModelSubject) -> str:
    """Say what differs when a text is scored twice, in ``state_dict`` or in the logits, or how the
    logits of another text of its shape differ between two models with the same saved state, one of
    which scores it first; empty if nothing does."""
    model = subject.twin().eval()
    saved = copy.deepcopy(model.state_dict())
    texts = subject.tokens(3, 33), subject.tokens(3, 33, 1)
    others: list[RoutedDecoder] = []
    if isinstance(subject.model, RoutedDecoder):
        with suppress(RuntimeError):  # the state cannot be loaded, which probe 10 says
            others = [rebuilt(subject.model) for _ in texts]

    def logits(of: LanguageModel, rule: Selection, tokens_BT: Tensor, seed: int = 1) -> Tensor:
        with seeded(seed, device_of(of)):
            return of.eval()(tokens_BT, Context(selection=rule))  # type: ignore[no-any-return]

    for rule in RULES:
        first_BTV = logits(model, rule, texts[0])
        saved = copy.deepcopy(model.state_dict()) | saved  # tables built on first use are no state
        again_BTV = logits(model, rule, texts[0], 2)
        if changed := _differs(model.state_dict(), saved):
            return f"scoring ({rule}) changes {changed}"
        if not unmoved(first_BTV, again_BTV):
            return f"two equal passes ({rule}) differ by {most(first_BTV, again_BTV)}; {NO_STATE}"
        if others:
            logits(others[0], rule, texts[0])
            one_BTV, two_BTV = (logits(other, rule, texts[1]) for other in others)
            if not unmoved(one_BTV, two_BTV):
                by = most(one_BTV, two_BTV)
                return f"scoring ({rule}) a text of the same shape first changes logits by {by}"
    return ""


def _random_steps(subject: Subject) -> str:
    """Describe what differs after one training step of two equal models, for which torch's generators
    are seeded; empty if nothing does."""
    for draw in range(10, 10 + REPEATED):
        first, second = subject.twin(), subject.twin()
        _step(subject, first, draw, MANY)
        _step(subject, second, draw, MANY)
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

    def run_seeded(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
        with seeded(layer.place.layer, x_BTD.device):
            out_BTD: Tensor = layer(x_BTD, context)
        return out_BTD.detach().requires_grad_()

    for step in passes(model, subject.tokens(3, 33), ("topk",), run_seeded):
        saved = copy.deepcopy(step.layer.state_dict())
        with step.context.trace.repeating():
            again_BTD = run_seeded(step.layer, step.x_BTD, step.context)
        if differs := _differs(step.layer.state_dict(), saved):
            return (
                f"layers.{step.number}.{differs} differs under activation checkpointing; update it only "
                "where context.trace.repeated is false"
            )
        if not unmoved(step.out_BTD, again_BTD):
            return f"the output of layer {step.number} differs under activation checkpointing"
    return ""


def _differs(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str:
    """Name the first tensor of ``first`` that differs in ``second``; empty if there is none."""
    return next((name for name, value in first.items() if not unmoved(value, second[name])), "")


def badly_initialised(subject: Subject) -> str:
    """Name a parameter or buffer that is never filled, that differs between two models of the same
    configuration, router and seed, or that starts unlike the dense model's; empty if there is none."""
    config = subject.model.config
    plain = _tensors(build_model(config, subject.model.router, subject.seed))
    # torch.use_deterministic_algorithms does the same, and imports the compiler, which takes a second.
    deterministic: Any = torch.utils.deterministic  # type: ignore[attr-defined]
    before = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    deterministic.fill_uninitialized_memory = True  # by NaN
    try:
        again = _tensors(build_model(config, subject.model.router, subject.seed))
    finally:
        torch.set_deterministic_debug_mode(before[0])
        deterministic.fill_uninitialized_memory = before[1]
    for name, value in again.items():
        # A value that is NaN on purpose is NaN in both models.
        if (value.isnan() & ~plain[name].isnan()).any():
            return f"{name} is never filled; set it in initialise"
        if not unmoved(value, plain[name]):
            return (
                f"{name} differs between two models of the same seed; draw it with torch, which is "
                "seeded then, and not with numpy or random"
            )
    dense = build_model(config, build_router("vanilla"), subject.seed)
    for shared, value in _tensors(dense).items():
        for name in (shared, re.sub(r"^(layers\.\d+\.)", r"\1block.", shared)):
            start = plain.get(name)
            if start is None or start.shape != value.shape or unmoved(start, value):
                continue
            if type(holder(subject.model, name)[1]) is type(holder(dense, shared)[1]):
                return (
                    f"{name} starts unlike the dense model's; leave the parts of modbench.model as "
                    "their own initialise fills them"
                )
    return ""


def _tensors(model: RoutedDecoder) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
