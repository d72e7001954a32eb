"""What a router's own code answers, each answer checked: its layers, and what they say of themselves.

A mistake in that code is its author's to mend, and is told in a sentence that names the router and the
layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from modbench.errors import FAULTS, UserError
from modbench.ledger import Counts, Direction, Flops, Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.layer import Layer
from modbench.routing.router import Router

_DIRECTIONS: tuple[str, ...] = get_args(Direction)


@contextmanager
def _told(router: Router, what: str) -> Iterator[None]:
    """
    Raises:
        UserError: whatever is raised inside.
    """
    try:
        yield
    except UserError as error:
        named = str(error).startswith(f"router '{router.name}'")
        raise UserError(str(error) if named else f"router '{router.name}': {error}") from error
    except FAULTS as error:
        raise UserError(
            f"router '{router.name}' raised {type(error).__name__}: {error} in {what}; mend it"
        ) from error


def built_layer(router: Router, config: ModelConfig, number: int) -> Layer:
    """
    Raises:
        UserError: ``build_layer`` raises, or builds no layer.
    """
    with _told(router, f"build_layer for layer {number}"):
        layer = router.build_layer(config, number)
    if not isinstance(layer, Layer):
        raise UserError(
            f"router '{router.name}' built {type(layer).__name__} for layer {number}; build_layer must "
            "return a modbench.model.layer.Layer"
        )
    return layer


def ledger_of(router: Router, layer: Layer, number: int, workload: Workload) -> Ledger:
    """
    Raises:
        UserError: ``ledger`` raises, or returns no ledger of whole numbers.
    """
    with _told(router, f"ledger of layer {number}"):
        ledger = layer.ledger(workload)
    if not isinstance(ledger, Ledger):
        raise UserError(
            f"router '{router.name}' gave {type(ledger).__name__} for a ledger of layer {number}; it "
            "must return a modbench.ledger.Ledger"
        )
    for key, flops in ledger.entries.items():
        if not _is_key(key):
            raise UserError(
                f"router '{router.name}': ledger of layer {number} has the key {key!r}; a key is "
                f"(layer, component, direction), and a direction one of {', '.join(_DIRECTIONS)}"
            )
        if not _is_count(flops):
            raise UserError(
                f"router '{router.name}': ledger of layer {number} says {flops!r} of {key!r}; it must "
                "be Flops of whole numbers, 0 or more"
            )
    return ledger


def _is_key(key: object) -> bool:
    if type(key) is not tuple or len(key) != 3:
        return False
    layer, component, direction = key
    return type(layer) is int and type(component) is str and direction in _DIRECTIONS


def _is_count(flops: object) -> bool:
    if type(flops) is not Flops:
        return False
    model, full, executed = flops.model, flops.full, flops.executed
    return type(model) is type(full) is type(executed) is int and min(model, full, executed) >= 0


def active_of(router: Router, layer: Layer, number: int) -> int:
    """
    Raises:
        UserError: ``active_parameters`` raises, or says more than the layer has, or less than none.
    """
    with _told(router, f"active_parameters of layer {number}"):
        active = layer.active_parameters()
    held = sum(parameter.numel() for parameter in layer.parameters())
    if type(active) is not int or not 0 <= active <= held:
        said = f"{active:,}" if type(active) is int else repr(active)
        raise UserError(
            f"router '{router.name}': active_parameters of layer {number} says {said}; it must be a "
            f"whole number, 0 to the layer's {held:,}"
        )
    return active


def nominal_counts_of(router: Router, layer: Layer, number: int, workload: Workload) -> Counts:
    """
    Raises:
        UserError: ``nominal_counts`` raises, or returns no counts.
    """
    with _told(router, f"nominal_counts of layer {number}"):
        promised = layer.nominal_counts(workload)
        for (at, what), counts in promised.items():
            if type(at) is int and type(what) is str and all(type(n) is int and n >= 0 for n in counts):
                continue
            raise UserError(
                f"nominal_counts of layer {number} says {counts!r} of {(at, what)!r}; it must be whole "
                "numbers, 0 or more, of (layer, what is routed)"
            )
    return promised
