"""Checks of a router's class: how it declares itself, when it is registered; that its modules can be
trained, when a layer is built; and what its hooks return, in each pass. A message names the hook's file
and line.

N tokens, K experts of a token, E experts.
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from types import MemberDescriptorType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils._pytree import tree_leaves

from modbench.errors import UserError
from modbench.routing.plugin_fault import DECORATORS, assigned_at, defined_at
from modbench.routing.router import Router

#: Methods that only another base class has, and what to do in their place.
ELSEWHERE = {
    "DepthRouter": {
        "choose": "override 'selected'",
        "assign": "override 'selected'",
        "scores": "override 'scorer'",
        "auxiliary_losses": "override 'losses'",
        "nominal_experts_per_token": "set the option 'capacity'",
        **dict.fromkeys(
            ("even_assignments", "exact_load", "no_ops", "nominal_assignments", "shares"), ""
        ),
    },
    "ExpertRouter": {
        "gate": "return the gates from 'choose'",
        "selected": "override 'choose' or 'assign'",
        **dict.fromkeys(("applied_gate", "capacity_of", "routes"), ""),
    },
    "ThresholdRouter": {"capacity_of": "set the option 'capacity'"},
    "ReluRouting": {"capacity_of": "set the option 'active_experts'"},
    "MixtureOfRecursions": {"capacity_of": "set the option 'recursions'"},
}
_DTYPES = {
    "bool": {torch.bool},
    "integer": {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8},
    "floating-point": {torch.float64, torch.float32, torch.bfloat16, torch.float16},
}
#: Attributes that every module has.
_OF_TORCH = frozenset(vars(nn.Module()))


def check_declaration(name: str, router: type) -> None:
    """Raise a `UserError` if ``router`` is not a frozen dataclass that derives from `Router` and builds
    layers, defines a method that nothing would call (`_check_hooks`), or sets an option in a way that
    has no effect (`_check_options`)."""
    kind = f"router '{name}' ({router.__qualname__})"
    if not issubclass(router, Router):
        raise UserError(f"{kind} must derive from DepthRouter, ExpertRouter or Router of modbench")
    parameters = vars(router).get("__dataclass_params__")  # a base class has its own
    if parameters is None or not parameters.frozen:
        raise UserError(f"{kind} must be a frozen dataclass; put {DECORATORS.format(name)} above it")
    if inspect.isabstract(router):
        missing = ", ".join(sorted(router.__abstractmethods__))
        raise UserError(
            f"{kind} does not define {missing}; define it, or derive from DepthRouter or ExpertRouter"
        )
    _check_hooks(kind, router)
    _check_options(kind, router)


def _check_hooks(kind: str, router: type[Router]) -> None:
    """Raise a `UserError` if a plugin's class defines a method whose name is close to that of a hook
    which it does not define, or one that is never called: a hook of the other base class, or the name
    of an option."""
    options = {field.name for field in fields(router)}  # type: ignore[arg-type]
    bases = {base.__name__ for base in router.__mro__ if base.__module__.startswith("modbench.")}
    for position, owner in enumerate(router.__mro__):
        if owner.__module__.startswith("modbench."):
            continue
        inherited = router.__mro__[position + 1 :]
        hooks = {name for base in inherited for name in _hooks(base)}
        for name, value in vars(owner).items():
            function = getattr(value, "__func__", value)  # of a static or class method
            if not inspect.isfunction(function) or name.startswith("_"):
                continue
            defined = f"{kind} defines {name}{defined_at(function)}"
            for base in ELSEWHERE.keys() & bases:
                if name in ELSEWHERE[base]:
                    remedy = ELSEWHERE[base][name] or f"a helper needs another name, such as '_{name}'"
                    raise UserError(f"{defined}, which {base} never calls; {remedy}")
            if name in options:
                raise UserError(f"{defined}, which is never called: an option has that name")
            near = difflib.get_close_matches(name, sorted(hooks), n=1, cutoff=0.7)
            is_own = not any(name in vars(base) for base in inherited)
            if is_own and near and near[0] not in vars(owner):  # else it is a helper of that method
                raise UserError(
                    f"{defined}; did you mean '{near[0]}'? a method that is no hook needs another "
                    f"name, such as '_{name}'"
                )


def _check_options(kind: str, router: type[Router]) -> None:
    """Raise a `UserError` if a plugin's class, or a class that it derives from, gives an option of a
    base class another value without making it a field: each instance would have the base's default."""
    declared = {field.name: field for field in fields(router) if field.init}  # type: ignore[arg-type]
    for owner in router.__mro__:
        if owner.__module__.startswith("modbench."):
            continue
        own = vars(owner).get("__dataclass_fields__", {})
        for name in inspect.get_annotations(owner):
            if name in declared and own.get(name) is declared[name]:
                del declared[name]  # this one holds, whatever further classes say
        for name, value in vars(owner).items():
            if name not in declared or isinstance(value, MemberDescriptorType):  # that of a slot
                continue
            plain = value is None or isinstance(value, bool | int | float | str)
            line = f"{name}: {_type_name(declared[name].type)} = {repr(value) if plain else 'VALUE'}"
            inside = "" if owner is router else f" in {router.__qualname__}"
            raise UserError(
                f"{kind} sets option '{name}'{assigned_at(owner, name)} where it has no effect, since "
                f"only an annotated name is an option; write `{line}`{inside}"
            )


def _type_name(hint: Any) -> str:
    """Return the annotation ``hint`` in the words of a plugin file, without ranges."""
    parts = get_args(hint)
    if get_origin(hint) is Annotated:
        return _type_name(parts[0])
    if get_origin(hint) is Literal:
        return type(parts[0]).__name__
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_type_name, parts))
    if isinstance(hint, str):
        return hint
    return "None" if hint is NoneType else inspect.formatannotation(hint)


def _hooks(base: type) -> list[str]:
    """Return the methods of a class of modbench."""
    if not base.__module__.startswith("modbench."):
        return []
    return [name for name, value in vars(base).items() if inspect.isfunction(value)]


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
