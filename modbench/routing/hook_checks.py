"""Checks of a router's hooks: that each would be called and accepts its arguments, when the router is
registered; that its modules can be trained, when a layer is built; and what it returns, in each pass.
A message names the hook's file and line.

N tokens, K experts of a token, E experts.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils._pytree import tree_leaves

from modbench.errors import UserError
from modbench.routing.plugin_fault import defined_at
from modbench.routing.router import Router

#: Hooks that the other base class calls, and what to do in their place.
ELSEWHERE = {
    "DepthRouter": {
        "choose": "override 'selected'",
        "assign": "override 'selected'",
        "scores": "override 'scorer'",
        "auxiliary_losses": "override 'losses'",
        "nominal_experts_per_token": "set the option 'capacity'",
    },
    "ExpertRouter": {
        "gate": "return the gates from 'choose'",
        "selected": "override 'choose' or 'assign'",
    },
}
#: Hooks, and the method of the base class that calls them: where it is overridden, nothing does.
REPLACED = {"choose": "assign", "losses": "auxiliary_losses", "gate": "applied_gate"}
_DTYPES = {
    "bool": {torch.bool},
    "integer": {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8},
    "floating-point": {torch.float64, torch.float32, torch.bfloat16, torch.float16},
}
#: Attributes that every module has.
_OF_TORCH = frozenset(vars(nn.Module()))


def check_hooks(kind: str, router: type[Router]) -> None:
    """Raise a `UserError` if a method of the class ``router`` would never be called or cannot be called
    as its base class does, or if its ``__post_init__`` skips the checks of inherited options. ``kind``
    names the router. modbench's own classes are not checked."""
    options = {field.name for field in fields(router)}  # type: ignore[arg-type]
    bases = {base.__name__ for base in router.__mro__ if base.__module__.startswith("modbench.routing.")}
    for name, function, base in _methods(router):
        where = f"{name}{defined_at(function)}"
        for other in ELSEWHERE.keys() & bases:
            if name in ELSEWHERE[other] and not _is_called(router, name):
                raise UserError(
                    f"{kind} defines {where}, which {other} never calls; {ELSEWHERE[other][name]}"
                )
        by = REPLACED.get(name, "")
        if name in options:
            remedy = f"override '{by}'" if hasattr(router, by) else "give it another name"
            raise UserError(
                f"{kind} defines {where}, which is never called: an option has that name; {remedy}"
            )
        if base is None:
            continue
        if _replaces(router, by, name) and not _is_called(router, name, by):
            raise UserError(
                f"{kind} defines {where}, which is never called: {by} of {_owner(router, by).__name__}"
                f"{defined_at(getattr(router, by))} replaces it; move it there, or remove one of them"
            )
        if name == "__post_init__" and name not in _names(function):
            raise UserError(
                f"{kind}: {where} does not call super().__post_init__(), which checks inherited "
                "options; call it first"
            )
        is_static = isinstance(inspect.getattr_static(router, name), staticmethod)
        expected = list(inspect.signature(base).parameters)[is_static:]
        expect_arguments(kind, name, function, expected)
    for method, hook in _misspelt(router):
        raise UserError(
            f"{kind} defines '{method}'; did you mean '{hook}'? a method that is no hook needs another "
            f"name, such as '_{method}'"
        )


def expect_arguments(kind: str, name: str, function: Callable[..., Any], names: Sequence[str]) -> None:
    """Raise a `UserError` if ``function``, called ``name``, does not accept the positional arguments
    ``names``. ``kind`` names the router."""
    signature = inspect.signature(function)
    try:
        signature.bind(*names)
    except TypeError as error:
        untyped = (each.replace(annotation=each.empty) for each in signature.parameters.values())
        accepted = ", ".join(map(str, untyped))
        raise UserError(
            f"{kind}: {name}{defined_at(function)} takes ({accepted}); it is called with "
            f"({', '.join(names)})"
        ) from error


def _methods(
    router: type[Router],
) -> Iterator[tuple[str, Callable[..., Any], Callable[..., Any] | None]]:
    """Yield name and function of each method that a plugin's classes define, and the function of
    modbench that it overrides, if it overrides one."""
    for position, kind in enumerate(router.__mro__[:-1]):
        if kind.__module__.startswith("modbench."):
            continue
        for name, value in vars(kind).items():
            function = getattr(value, "__func__", value)  # of a static or class method
            if not inspect.isfunction(function) or (name[:2] == "__" and name != "__post_init__"):
                continue
            bases = (b for b in router.__mro__[position + 1 :] if b.__module__.startswith("modbench."))
            overridden = (vars(base).get(name) for base in bases)
            yield name, function, next(filter(inspect.isfunction, overridden), None)


def _owner(router: type, method: str) -> type:
    return next(base for base in router.__mro__ if method in vars(base))


def _replaces(router: type[Router], method: str, hook: str) -> bool:
    """Return True if ``method`` of a base class is overridden, and not by a class further down than the
    one with ``hook``, which replaces the inherited hook on purpose."""
    if not method or not hasattr(router, method):
        return False
    method_owner, hook_owner = _owner(router, method), _owner(router, hook)
    return method_owner.__name__ not in ELSEWHERE and (
        method_owner is hook_owner or not issubclass(method_owner, hook_owner)
    )


def _is_called(router: type[Router], hook: str, replaced_by: str = "") -> bool:
    """Return True if another method of a plugin names ``hook``, or if ``replaced_by`` names it or the
    method it overrides."""
    called = [_names(function) for name, function, _ in _methods(router) if name != hook]
    if replaced_by:
        replacing = _names(getattr(router, replaced_by))
        called += [replacing, {hook} if replaced_by in replacing else set()]
    return any(hook in names for names in called)


def _names(function: Callable[..., Any]) -> set[str]:
    """Return the names of attributes and globals that ``function`` uses, inner functions included."""
    codes = [inspect.unwrap(function).__code__]
    names = set[str]()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names


def _misspelt(router: type[Router]) -> Iterator[tuple[str, str]]:
    """Yield methods of a plugin that are called nearly as a method of modbench which the plugin does not
    override, and that method."""
    for position, kind in enumerate(router.__mro__):
        bases = router.__mro__[position + 1 :]
        if kind.__module__.startswith("modbench."):
            continue
        hooks = {
            name
            for base in bases
            for name, value in vars(base).items()
            if base.__module__.startswith("modbench.") and inspect.isfunction(value)
        }
        for name, value in vars(kind).items():
            inherited = any(name in vars(base) for base in bases)
            if inspect.isfunction(value) and not name.startswith("_") and not inherited:
                near = difflib.get_close_matches(name, sorted(hooks), n=1, cutoff=0.7)
                if near and near[0] not in vars(kind):  # else it is a helper of that method
                    yield name, near[0]


def expect_calls(router: Router, because: str, *hooks: str) -> None:
    """Raise a `UserError` if a class of a plugin defines one of ``hooks``, which nothing calls
    ``because`` of something in this router."""
    for name, function, _ in _methods(type(router)):
        if name in hooks and not _is_called(type(router), name):
            raise UserError(
                f"router '{router.name}': {name}{defined_at(function)} is never called, because "
                f"{because}; remove one of the two"
            )


def expect_registered(router: Router, model: nn.Module) -> None:
    """Raise a `UserError` if a module of ``model`` that a plugin defines keeps parameters where PyTorch
    does not find them, as in a list."""
    registered = {id(parameter) for parameter in model.parameters()}
    for module in model.modules():
        kind = type(module)
        if kind.__module__.startswith(("torch.", "modbench.")):
            continue
        for name, value in vars(module).items():
            lost = name not in _OF_TORCH and any(id(p) not in registered for p in _parameters(value))
            if lost:
                raise UserError(
                    f"router '{router.name}': {kind.__name__}{defined_at(kind.__init__)} keeps "
                    f"parameters in '{name}', a {type(value).__name__}, where training does not find "
                    "them; use nn.Parameter, nn.ParameterList or nn.ModuleList"
                )


def _parameters(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in ``value``, an attribute of a module, that are meant to be trained."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, nn.Module):
            yield from leaf.parameters()
        elif isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_leaf:
            yield leaf


def expect(router: Router, hook: str, condition: bool, actual: str, expected: str) -> None:
    """Check ``condition``, which holds if the method ``hook`` of ``router`` returned what it must. Raise
    a `UserError` if it does not hold."""
    if not condition:
        name = getattr(router, "name", type(router).__name__)
        where = f"{hook}{defined_at(getattr(type(router), hook))}"
        raise UserError(f"router '{name}': {where} returned {actual}; expected {expected}")


def shown(value: Any) -> str:
    """Return the type of ``value``; of a tensor its shape and dtype; of a tuple its parts."""
    if isinstance(value, tuple) and value:
        return f"a tuple of {' and '.join(map(shown, value))}"
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    return f"a tensor of shape {tuple(shape)} and {value.dtype}"


def checked_tensor(
    router: Router,
    hook: str,
    value: Any,
    shape: Sequence[int],
    kind: str = "floating-point",
    *,
    part: str = "",
) -> Tensor:
    """Return ``value``, the ``part`` of what ``hook`` returned, if it is a tensor of ``shape`` and
    ``kind``."""
    right = isinstance(value, Tensor) and value.shape == torch.Size(shape)
    right = right and value.dtype in _DTYPES[kind]
    expected = f"{part}{kind} values of shape {tuple(shape)}"
    expect(router, hook, right, part + shown(value), expected)
    return value  # type: ignore[no-any-return]


def expect_losses(router: Router, losses: Any, hook: str = "losses") -> None:
    """Check that ``losses``, what the method ``hook`` returned, are scalars by name."""
    expect(router, hook, isinstance(losses, Mapping), shown(losses), "a dict of scalar tensors by name")
    for name, loss in losses.items():
        right = isinstance(loss, Tensor) and loss.numel() == 1
        expect(router, hook, right, f"'{name}' as {shown(loss)}", "a scalar tensor")


def has_values(tensor: Tensor) -> bool:
    """Return True if the host can read ``tensor``, which is not meta, of a plan, or traced."""
    return not (tensor.is_meta or is_fake(tensor) or torch.jit.is_tracing())


def checked_choice(
    router: Router, choice: Any, tokens: int, top_k: int, experts: int | None
) -> tuple[Tensor, Tensor]:
    """Return the ids and gates, (N, K) each, of N ``tokens`` that `choose` returned among ``experts``;
    None: do not read the ids, for which the host would wait for a GPU."""
    pair = isinstance(choice, tuple | list) and len(choice) == 2
    expect(router, "choose", pair, shown(choice), "two tensors, expert ids and gates")
    ids, gates = choice
    shape = tokens, top_k
    ids_NK = checked_tensor(router, "choose", ids, shape, "integer", part="expert ids as ")
    gates_NK = checked_tensor(router, "choose", gates, shape, part="gates as ")
    if experts is not None and ids_NK.numel():
        _expect_ids(router, ids_NK, experts)
    return ids_NK.to(torch.int64), gates_NK


def _expect_ids(router: Router, ids_NK: Tensor, experts: int) -> None:
    """Check that each token has different experts, numbered from 0 to ``experts`` - 1."""
    lowest, highest = (int(bound) for bound in ids_NK.aminmax())
    outside = lowest if lowest < 0 else highest
    inside = 0 <= outside < experts
    expect(router, "choose", inside, f"expert id {outside}", f"ids from 0 to {experts - 1}")
    chosen_NE = torch.zeros(len(ids_NK), experts, dtype=torch.bool, device=ids_NK.device)
    chosen_NE.scatter_(1, ids_NK.to(torch.int64), True)
    once = int(chosen_NE.count_nonzero()) == ids_NK.numel()
    expect(router, "choose", once, "an expert twice for one token", "different experts for each token")
