"""Models from a shape and a router."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from modbench.ledger import Counts, Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.model.init import stream
from modbench.model.layer import Layer
from modbench.routing.hook_checks import expect, expect_registered, shown
from modbench.routing.plugin_fault import authors_code
from modbench.routing.registry import build_router, preset_options
from modbench.routing.router import Router


class RoutedDecoder(Decoder):
    """A decoder whose layers ``router`` builds. Raise a `UserError` if the router cannot build a layer
    for this shape."""

    def __init__(self, config: ModelConfig, router: Router) -> None:
        def built(number: int) -> Layer:
            with authors_code(router, f"build_layer of layer {number}"):
                layer = router.build_layer(config, number)
            expect(router, "build_layer", isinstance(layer, Layer), shown(layer), "a Layer")
            return layer

        super().__init__(config, map(built, range(config.layers)))
        self.router = router
        expect_registered(router, self)
        router.check_model(self)

    @property
    def scheme(self) -> str:
        return self.router.name

    def ledger(self, workload: Workload) -> Ledger:
        with authors_code(self.router, "ledger"):
            return super().ledger(workload)

    def nominal_counts(self, workload: Workload) -> Counts:
        with authors_code(self.router, "nominal_counts"):
            return super().nominal_counts(workload)

    def expected_counts(self, workload: Workload) -> Counts:
        with authors_code(self.router, "expected_counts"):
            return super().expected_counts(workload)

    def active_by_layer(self) -> list[int]:
        with authors_code(self.router, "active_parameters"):
            return super().active_by_layer()


def outline(config: ModelConfig, router: Router) -> RoutedDecoder:
    """Build a decoder without values, on the meta device. Raise a `UserError` if the router cannot build
    this shape."""
    with torch.device("meta"), _Uninitialised():
        return RoutedDecoder(config, router)


def meta_decoder(router: str, options: Mapping[str, Any], model: ModelConfig) -> RoutedDecoder:
    """`outline` of ``router`` (``NAME`` or ``NAME:PRESET``). Raise a `UserError` for an unknown router,
    preset or option, or a shape that the router cannot build."""
    plain, preset = preset_options(router)
    return outline(model, build_router(plain, {**preset, **options}))


class _Uninitialised(TorchFunctionMode):
    """Skips the functions of `torch.nn.init`: on the meta device they do nothing, after an import of the
    compiler, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_model(config: ModelConfig, router: Router, seed: int = 0) -> RoutedDecoder:
    """Build a decoder with initial weights: the same bits for the same arguments, whatever ran before.
    Raise a `UserError` if the router cannot build this shape."""
    state = torch.get_rng_state()
    # A plugin's own initialisation draws from the global generator.
    torch.manual_seed(stream(seed, "router").initial_seed())
    try:
        model = RoutedDecoder(config, router)
        with authors_code(router, "initialise"):
            model.initialise(seed)
    finally:
        torch.set_rng_state(state)
    return model
