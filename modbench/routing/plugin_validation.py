"""Calls the code of a router: checks return types, and turns exceptions into a `UserError`."""

from collections.abc import Callable
from typing import Any

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload
from modbench.model.layer import Layer
from modbench.routing.plugin_fault import authors_code, defined_at
from modbench.routing.router import Router


def checked_call(
    router: Router, where: str, kind: type, function: Callable[..., Any], *arguments: Any
) -> Any:
    """Return ``function(*arguments)``, which is code of ``router``'s author.

    Raises:
        UserError: it raises or returns something other than a ``kind``; the message names the router
            and ``where``, the method and layer.
    """
    with authors_code(router, where):
        result = function(*arguments)
    if not isinstance(result, kind):
        raise UserError(
            f"router '{router.name}': {where}{defined_at(function)} returned "
            f"{type(result).__name__}; it must return {kind.__module__}.{kind.__name__}"
        )
    return result


def ledger_of(router: Router, layer: Layer, number: int, workload: Workload) -> Ledger:
    """Return the FLOPs of ``layer``."""
    where = f"ledger of layer {number}"
    ledger: Ledger = checked_call(router, where, Ledger, layer.ledger, workload)
    return ledger


def active_of(router: Router, layer: Layer, number: int) -> int:
    """Return the active parameters of ``layer``.

    Raises:
        UserError: it has fewer parameters than that.
    """
    where = f"active_parameters of layer {number}"
    active: int = checked_call(router, where, int, layer.active_parameters)
    total = sum(parameter.numel() for parameter in layer.parameters())
    if not 0 <= active <= total:
        raise UserError(
            f"router '{router.name}': {where}{defined_at(layer.active_parameters)} is {active:,}; it "
            f"must lie between 0 and the layer's {total:,} parameters"
        )
    return active
