"""Checks what the methods of an `ExpertRouter` return. Values are checked where they cost nothing: on a
CPU, not while tensors have none.

N tokens, E experts, K experts of a token, D model width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from modbench.routing.expert_hooks import ExpertHooks
from modbench.routing.hook_checks import expect, has_values, shown

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_scorer(router: ExpertHooks, scorer: Any) -> nn.Module | None:
    """Return what `scorer` built."""
    right = scorer is None or isinstance(scorer, nn.Module)
    expect(router, "scorer", right, shown(scorer), "a torch.nn.Module or None")
    return scorer  # type: ignore[no-any-return]


def checked_nominal(router: ExpertHooks) -> float:
    """Return the nominal experts per token."""
    found = router.nominal_experts_per_token()
    right = isinstance(found, int | float) and math.isfinite(found) and 0 < found <= router.experts
    expected = f"a number above 0 and at most experts, {router.experts}"
    expect(router, "nominal_experts_per_token", right, repr(found), expected)
    return found


def checked_logits(router: ExpertHooks, logits_NE: Any, shape: tuple[int, int]) -> Tensor:
    """Return what the scorer gave for N tokens."""
    if not _floats(logits_NE, shape):
        expected = f"a module that gives floating-point logits (N, E) = {shape}"
        found = f"a module that gives {shown(logits_NE)}"
        expect(router, "scorer", False, found, expected)
    return logits_NE  # type: ignore[no-any-return]


def checked_choice(router: ExpertHooks, choice: Any, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids (N, K) and gates (N, K) of `choose`."""
    shape, experts = (len(logits_NE), router.top_k), logits_NE.shape[1]
    if not isinstance(choice, tuple | list) or len(choice) != 2:
        expect(router, "choose", False, shown(choice), "two tensors, expert ids and gates")
    ids_NK, gates_NK = choice
    if not isinstance(ids_NK, Tensor) or ids_NK.dtype not in _INTEGERS or ids_NK.shape != shape:
        expected = f"integer expert ids (N, top_k) = {shape}"
        expect(router, "choose", False, _described("expert ids", ids_NK), expected)
    if not _floats(gates_NK, shape):
        expected = f"floating-point gates (N, top_k) = {shape}"
        expect(router, "choose", False, _described("gates", gates_NK), expected)
    if has_values(ids_NK):
        low, high = (int(end) for end in ids_NK.aminmax())
        right = low >= 0 and high < experts
        expect(router, "choose", right, f"expert ids from {low} to {high}", f"0 to {experts - 1}")
    return ids_NK.to(torch.int64), gates_NK


def checked_gates(router: ExpertHooks, gates_NE: Any, logits_NE: Tensor) -> Tensor:
    """Return the gates (N, E) of `assign`."""
    shape = (len(logits_NE), router.experts)
    if not _floats(gates_NE, shape):
        expect(router, "assign", False, shown(gates_NE), f"floating-point gates (N, E) = {shape}")
    return gates_NE  # type: ignore[no-any-return]


def check_numbers(
    router: ExpertHooks,
    hook: str,
    gates: Tensor,
    logits_NE: Tensor,
    x_ND: Tensor,
    scorer: nn.Module | None,
) -> None:
    """Reject gates of ``hook`` that are not finite, unless the model has diverged: its input or its
    weights are not finite."""
    if not has_values(gates) or gates.detach().isfinite().all():
        return
    weights = () if scorer is None else scorer.parameters()
    if not all(bool(part.detach().isfinite().all()) for part in (x_ND, *weights)):
        return
    if not logits_NE.detach().isfinite().all():
        found = "a module that gives NaN or Inf for finite inputs"
        expect(router, "scorer", False, found, "finite logits")
    expect(router, hook, False, "gates that are NaN or Inf", "finite gates")


def _described(what: str, value: Any) -> str:
    """Return "gates of shape (256, 1) and torch.float32", or "gates of type list"."""
    if isinstance(value, Tensor):
        return f"{what} of shape {tuple(value.shape)} and {value.dtype}"
    return f"{what} of type {type(value).__name__}"


def _floats(value: Any, shape: tuple[int, int]) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape
