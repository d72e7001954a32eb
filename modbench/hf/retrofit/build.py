"""Builds what the config of a retrofitted model describes, and puts it into the layers of the model.

B sequences, T tokens, D model width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.hf.cache import windows_of
from modbench.hf.retrofit.layer import (
    PASS,
    ROUTER,
    Pass,
    RetrofitRouter,
    RoutedLayer,
    layer_class,
    named_arguments,
)
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import stream
from modbench.routing.depth_router import DepthScheme
from modbench.routing.expert_router import ExpertScheme, RoutedExperts
from modbench.routing.plugin_fault import authors_code
from modbench.routing.registry import build_router


class UpcycledExperts(nn.Module):
    """A bank of experts as `ExpertRouter` has it, called as an MLP of transformers is."""

    def __init__(self, options: ExpertScheme, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.experts = RoutedExperts(options, model, layer)
        #: Pass or context of the layer while it runs.
        self.current: Pass | Context | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        current, self.current = self.current, None
        if isinstance(current, Context):  # tokens that depth routing has gathered
            return self.experts(hidden_states, current)  # type: ignore[no-any-return]
        assert current is not None
        if current.is_padding:
            return torch.zeros_like(hidden_states)
        x_BTD = current.ordered(hidden_states)
        return current.restored(self.experts(x_BTD, current.context(x_BTD)))


class ExpertLayer(nn.Module):
    """The part of a layer with experts that comes before the layer's own class."""

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        named |= named_arguments(self, arguments)
        current: Pass | Context | None = named.pop(PASS, None)
        if current is None:
            raise UserError(
                f"{type(self).__name__} was called without the model around it; call the causal "
                "language model itself (for hidden states with output_hidden_states=True)"
            )
        mlp: UpcycledExperts = self.mlp  # type: ignore[assignment]
        mlp.current = current
        if isinstance(current, Context):
            return super().forward(hidden_states, **named)  # type: ignore[misc,no-any-return]
        with current.repeating(mlp):
            return super().forward(hidden_states, **named)  # type: ignore[misc,no-any-return]


M = TypeVar("M", bound=nn.Module)


def rebuild(model: Any) -> None:
    """Build the routers that the config of ``model``, just constructed, describes."""
    described = getattr(model.config, "modbench", None) or {}
    layers = model.base_model.layers
    if "experts" in described:
        experts = described["experts"]
        scheme = build_router(experts["name"], experts["options"])
        assert isinstance(scheme, ExpertScheme)
        put_experts(layers, build_experts(scheme, model, layers, experts["seed"], experts["layers"]))
    if "depth" in described:
        depth = described["depth"]
        router = build_router(depth["name"], depth["options"])
        assert isinstance(router, DepthScheme)
        put_routers(layers, build_routers(router, model, layers, depth["seed"]), model)


def build_experts(
    router: ExpertScheme,
    model: Any,
    layers: nn.ModuleList,
    seed: int,
    numbers: Sequence[int] | None = None,
) -> dict[int, UpcycledExperts]:
    """Return experts for the layers ``numbers``, by default all, with initial weights."""
    shape = shape_of(model.config)
    parts = {}
    with _drawing(seed):
        for number in range(len(layers)) if numbers is None else numbers:
            with authors_code(router, f"the experts of layer {number}"):
                part = UpcycledExperts(router, shape, number)
                initialise(part, seed)
            parts[number] = _placed(part, layers[number])
    return parts


def put_experts(layers: nn.ModuleList, parts: Mapping[int, UpcycledExperts]) -> None:
    """Put ``parts`` in place of the MLPs of their layers."""
    for number, part in parts.items():
        layer: Any = layers[number]
        layer.__class__ = layer_class(ExpertLayer, layer.__class__)
        layer.mlp = part.train(layer.training)


def routers_of(model: nn.Module) -> list[RetrofitRouter]:
    """Return the routers of a retrofitted model, from the first layer to the last."""
    return [part for part in model.modules() if isinstance(part, RetrofitRouter)]


@contextmanager
def everything_selected(model: nn.Module) -> Iterator[None]:
    """Select all tokens, with a gate of 1, in the passes inside; each expert that chooses takes all."""
    routers = routers_of(model)
    cuts = {
        part.router.threshold: part.router.threshold.value.clone()  # type: ignore[union-attr, operator]
        for part in model.modules()
        if isinstance(part, RoutedExperts) and hasattr(part.router, "threshold")
    }
    for router in routers:
        router.everything = True
    for threshold in cuts:
        threshold.value.fill_(-torch.inf)  # type: ignore[operator,union-attr]
    try:
        yield
    finally:
        for router in routers:
            router.everything = False
        for threshold, value in cuts.items():
            threshold.value.copy_(value)  # type: ignore[operator,union-attr]


def shape_of(config: Any) -> ModelConfig:
    """Return what a router may ask of the model's shape."""
    heads = config.num_attention_heads
    fits = config.hidden_size % heads == 0 and config.hidden_size // heads % 2 == 0
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return ModelConfig(
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads if fits else 1,
        kv_heads=key_heads if fits and heads % key_heads == 0 else None,
        mlp_width=getattr(config, "intermediate_size", None),
    )


def build_routers(
    router: DepthScheme, model: Any, layers: nn.ModuleList, seed: int
) -> dict[int, RetrofitRouter]:
    """Return a router for each layer that is routed, with initial weights: the same ones for the same
    arguments, whatever ran before."""
    shape = shape_of(model.config)
    routed = [number for number in range(len(layers)) if router.routes(number, len(layers))]
    if not routed:
        raise UserError(f"no layer of {len(layers)} is routed; change every, offset or first_dense")
    parts = {}
    with _drawing(seed):
        for number in routed:
            with authors_code(router, f"the scorer of layer {number}"):
                part = RetrofitRouter(router, shape, number)
                initialise(part, seed)
            parts[number] = _placed(part, layers[number])
    return parts


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Seed the global generator, from which a plugin's own initialisation draws, and restore it."""
    state = torch.get_rng_state()
    torch.manual_seed(stream(seed, "router").initial_seed())
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _placed(part: M, layer: nn.Module) -> M:
    """Give ``part`` the device of ``layer``, and its parameters the dtype; averages stay float32."""
    weight = next(layer.parameters())
    # Only what differs: tensors without values, as memory is planned with, can't be moved.
    if any(tensor.device != weight.device for tensor in [*part.parameters(), *part.buffers()]):
        part.to(weight.device)
    for parameter in part.parameters():
        if parameter.dtype != weight.dtype:
            parameter.data = parameter.data.to(weight.dtype)
    return part


def initialise(part: nn.Module, seed: int) -> None:
    """Fill the parameters of ``part``, each module its own; none on the meta device."""
    if any(tensor.is_meta for tensor in [*part.parameters(), *part.buffers()]):
        return
    for module in part.modules():
        fill = getattr(module, "initialise", None)
        if callable(fill):
            fill(seed)


def put_routers(layers: nn.ModuleList, parts: dict[int, RetrofitRouter], model: Any) -> None:
    windows = windows_of(model.config)
    for number, part in parts.items():
        layer: Any = layers[number]
        layer.__class__ = layer_class(RoutedLayer, layer.__class__)
        assert isinstance(layer, RoutedLayer)
        layer.modbench_layer = number
        layer.modbench_window = windows[number]
        part.train(layer.training)
        setattr(layer, ROUTER, part)
