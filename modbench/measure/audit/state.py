"""Probe 10: all that training moves is in ``state_dict``.

B sequences, T tokens, V vocabulary.
"""

import cmath
import copy
import itertools
import random
import sys
from collections.abc import Mapping, Sequence, Set
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modbench.measure.audit.finding import RULES, Outcome, Subject, device_of, unmoved
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder, build_model
from modbench.train.config import TrainConfig
from modbench.train.loop import build_optimizer, training_step

#: What every module has: torch's own, or in state_dict.
_TORCHS = frozenset(vars(nn.Module()))
#: So deep objects inside objects are looked into.
_DEEP = 6
#: Values that a file or class may hold beside numbers, texts, lists, mappings and tensors.
_NUMBERS = bool | int | float | complex | np.ndarray | np.generic
_DRAWS = torch.Generator | np.random.Generator | random.Random


def state(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 10: what a few training steps left is loaded into a model that was built anew, from another
    seed: it gives the same logits under both rules and the same state after one step more, bit for bit.
    And nothing outside ``state_dict`` changes from one step to the next: no attribute of a module, of a
    class of the scheme's own, or of the file that such a class stands in, with what functions there have
    about them: default arguments, attributes, closures. Scoring changes nothing at all, and activation
    checkpointing nothing but memory. And nothing begins as what memory held."""
    wrong = _unfilled(subject) or moved_by_scoring(subject) or _unlike(subject)
    if wrong:
        return False, wrong
    train = TrainConfig(budget=1)
    model = subject.twin().train()
    optimizer = build_optimizer(model, train)

    def step(which: RoutedDecoder, by: torch.optim.Optimizer, draw: int) -> None:
        text_BT = subject.tokens(3, 33, draw)
        on = device_of(which)
        with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
            torch.manual_seed(draw)
            training_step(which.train(), by, train, (text_BT[:, :-1], text_BT[:, 1:]), torch.float32)

    step(model, optimizer, 1)
    before = _outside(model)  # after the first step: what is made on first use is no state
    step(model, optimizer, 2)
    step(model, optimizer, 3)
    if moved := _moved(before, _outside(model)):
        return False, f"training moves {moved[0]}, which is not in state_dict"
    wrong = _repeated(subject)
    if wrong:
        return False, wrong

    loaded = build_model(model.config, model.router, subject.seed + 1).to(device_of(model))
    loaded = loaded.to(next(model.parameters()).dtype)
    loaded.load_state_dict(copy.deepcopy(model.state_dict()))
    other = build_optimizer(loaded, train)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    text_BT = subject.tokens(3, 63, 4)
    for rule in RULES:
        with torch.no_grad():
            one_BTV, two_BTV = (m.eval()(text_BT, Context(selection=rule)) for m in (model, loaded))
        if not torch.equal(one_BTV, two_BTV):
            most = (one_BTV - two_BTV).abs().max().item()
            return False, f"logits of the loaded model ({rule}) differ by {most:.1e}"
    step(model, optimizer, 5)
    step(loaded, other, 5)
    resumed = loaded.state_dict()
    differ = [name for name, value in model.state_dict().items() if not unmoved(value, resumed[name])]
    if differ:
        return False, f"resumed, {differ[0]} differs after one step"
    return True, f"{len(resumed)} tensors saved, loaded and resumed to the bit"


def _unfilled(subject: Subject) -> str:
    """Which parameter or buffer is made empty and never filled; empty if none."""
    asked = (subject.model.config, subject.model.router, subject.seed)
    plain = dict(_tensors(build_model(*asked)))
    kept = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        # What is made empty is then no number, or the greatest, until it is filled.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        model = build_model(*asked)
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = kept  # type: ignore[attr-defined]
    for name, value in _tensors(model):
        # One that is so on purpose is so in both.
        if (_fresh(value) & ~_fresh(plain[name])).any():
            return (
                f"{name} is never filled: its first values are what memory held; fill it in initialise"
            )
    return ""


def _fresh(value: Tensor) -> Tensor:
    """Where ``value`` is what PyTorch fills fresh memory with: no number, or the greatest whole one."""
    if value.dtype == torch.bool:  # half of all are
        return torch.zeros_like(value)
    if value.is_floating_point() or value.is_complex():
        return value.isnan()
    return value == torch.iinfo(value.dtype).max


def _tensors(model: RoutedDecoder) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@torch.no_grad()
def moved_by_scoring(subject: Subject) -> str:
    """What scoring the same text twice moves, in ``state_dict`` or outside it; empty if nothing."""
    model = subject.twin().eval()
    saved = copy.deepcopy(model.state_dict())
    text_BT = subject.tokens(3, 33)
    for rule in RULES:
        model(text_BT, Context(selection=rule))
        # What is made on first use is no state.
        held, saved = _outside(model), copy.deepcopy(model.state_dict()) | saved
        model(text_BT, Context(selection=rule))
        changed = [name for name, value in model.state_dict().items() if not unmoved(value, saved[name])]
        if moved := changed or _moved(held, _outside(model)):
            return f"scoring ({rule}) moves {moved[0]}"
    return ""


@torch.no_grad()
def _unlike(subject: Subject) -> str:
    """By how much the same text, scored twice, differs; empty if not at all."""
    model, text_BT = subject.twin().eval(), subject.tokens(3, 33)
    first_BTV, again_BTV = (model(text_BT, Context(selection="causal")) for _ in range(2))
    if torch.equal(first_BTV, again_BTV):
        return ""
    return f"the same text scored twice differs by {(first_BTV - again_BTV).abs().max().item():.1e}"


def _repeated(subject: Subject) -> str:
    """What training moves otherwise if layers are run again in the backward pass; empty if nothing."""
    states, losses = [], []
    for checkpoint in (False, True):
        model, text_BT = subject.twin().train(), subject.tokens(3, 33)
        context = Context(checkpoint=checkpoint)
        on = device_of(model)
        with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
            torch.manual_seed(0)
            loss = model.loss(text_BT, text_BT.roll(-1, 1), context) + context.trace.auxiliary_loss()
            loss.backward()
        states.append(model.state_dict())
        losses.append(loss.item())
    moved = [name for name, value in states[0].items() if not unmoved(value, states[1][name])]
    if moved:
        return f"{moved[0]} moves otherwise where layers are run again: mind context.trace.repeated"
    if losses[0] != losses[1]:
        return f"the loss is {losses[1]:.6g} where layers are run again, otherwise {losses[0]:.6g}"
    return ""


def _outside(model: RoutedDecoder) -> dict[str, Any]:
    """What the modules hold that ``state_dict`` does not, by name."""
    saved = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers[key]
            found[f"{name}.{key}"] = None if buffer is None else buffer.clone()
        for key, value in vars(module).items():
            if key not in _TORCHS:
                found[f"{name}.{key}"] = _plain(value, saved, _DEEP)
    classes = dict.fromkeys([*map(type, model.modules()), type(model.router)])
    kinds = dict.fromkeys(base for one in classes for base in one.__mro__ if _foreign(base.__module__))
    for kind in kinds:
        for key, value in vars(kind).items():
            if not key.startswith("__") and _is_data(value, kind.__module__):
                found[f"class {kind.__name__}.{key}"] = _plain(value, saved, _DEEP)
            for what, held in _held(_bare(value)).items():
                found[f"{what} of class {kind.__name__}.{key}"] = _plain(held, saved, _DEEP)
    for place in dict.fromkeys(kind.__module__ for kind in kinds):
        file = sys.modules.get(place)
        for key, value in {} if file is None else dict(vars(file)).items():
            if not key.startswith("__") and _is_data(value, place):
                found[f"global {place}.{key}"] = _plain(value, saved, _DEEP)
            bare = _bare(value)
            if isinstance(bare, FunctionType) and bare.__module__ == place:
                for what, held in _held(bare).items():
                    found[f"{what} of global {place}.{key}"] = _plain(held, saved, _DEEP)
    return found


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [name for name in after if not _same(before.get(name), after[name])]


def _foreign(module: str) -> bool:
    """Whether a scheme may be at home there."""
    if module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return False
    return not module.startswith(("torch.", "modbench.model."))


def _bare(value: Any) -> Any:
    """The function that a method or property is made of."""
    return getattr(value, "fget", None) or getattr(value, "__func__", value)


def _held(value: Any) -> dict[str, Any]:
    """What a function has about it, by what that is called; nothing where it is none."""
    if not isinstance(value, FunctionType):
        return {}
    held = {
        "a default argument": [value.__defaults__, value.__kwdefaults__],
        "an attribute": {key: item for key, item in vars(value).items() if key != "__wrapped__"},
        "the closure": [_content(cell) for cell in value.__closure__ or ()],
    }
    return {what: item for what, item in held.items() if item}


def _is_data(value: Any, module: str) -> bool:
    """Whether it is a value, or an object of a class of that file; not a function, class or module."""
    plain = isinstance(value, Mapping | Sequence | Set | Tensor | _NUMBERS | _DRAWS | itertools.count)
    return plain or (not isinstance(value, type) and type(value).__module__ == module)


def _plain(value: Any, saved: set[int], deep: int) -> Any:
    """A copy of ``value`` to compare with later; None for what can't be told apart."""
    if isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if isinstance(value, Tensor):
        return None if id(value) in saved else value.detach().clone()
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), list(value.shape), value.tobytes()]
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, itertools.count):
        return repr(value)
    if deep == 0 or value is None or isinstance(value, type):
        return None
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, Mapping):
        return {repr(key): _plain(item, saved, deep - 1) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, saved, deep - 1) for item in value]
    if isinstance(value, Set):
        return sorted(map(repr, value))
    held: Any = _held(_bare(value)) or _attributes(value)
    return _plain(held, saved, deep - 1)


def _attributes(value: Any) -> dict[str, Any] | None:
    """Those in its ``__dict__`` and in the ``__slots__`` of its classes."""
    found = {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    found |= getattr(value, "__dict__", {})
    return found or None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return unmoved(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float | complex) and cmath.isnan(one):
        return cmath.isnan(other)
    return bool(one == other)
