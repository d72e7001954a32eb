"""`retrofit`: depth routing for a causal language model of transformers, in place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from modbench.errors import UserError
from modbench.hf.retrofit.family import model_class
from modbench.hf.retrofit.layer import ROUTER, RetrofitRouter, RoutedLayer, routed_class
from modbench.hf.retrofit.refuse import decoder_layers, windows_of
from modbench.model.config import ModelConfig
from modbench.model.init import stream
from modbench.routing.depth_router import DepthScheme
from modbench.routing.plugin_fault import authors_code
from modbench.routing.registry import build_router, preset_options
from modbench.routing.router import Router, overrides


def retrofit(
    model: Any, router: str | DepthScheme, every: int | None = None, *, seed: int = 0, **options: Any
) -> Any:
    """Give ``model``, a causal language model of transformers, depth routing in place, and return it.

    ``router``: a `DepthRouter` by name (``NAME`` or ``NAME:PRESET``) with its ``options``, or one that
    is built. ``every``: route every n-th layer; None: as the router says. ``seed`` fixes the initial
    weights of the routers. Parameters keep their names; `save_pretrained` writes a folder that
    ``AutoModelForCausalLM.from_pretrained`` loads where `modbench.hf.retrofit` was imported. In training
    mode the training rule selects, and auxiliary losses are added to the model's loss; in eval mode the
    causal rule. Raise a `UserError` for a model or router that can't be used; the model is then as it
    was."""
    built = router_of(router, options if every is None else {**options, "every": every})
    layers = decoder_layers(model)
    parts = _build(built, model, layers, seed)
    settings = {"name": built.name, "options": built.options(), "seed": seed}
    _swap(layers, parts, model)
    _retype(model, {"depth": settings})
    return model


def router_of(router: str | Router, options: Mapping[str, Any]) -> DepthScheme:
    """Return the depth router ``router`` with ``options``. Raise a `UserError` if it is another kind of
    router, or one that changes what a block computes."""
    if isinstance(router, str):
        name, preset = preset_options(router)
        router = build_router(name, {**preset, **options})
    elif options:
        raise UserError(
            f"options {', '.join(sorted(options))} are given with a router that is built; set them there"
        )
    if not isinstance(router, DepthScheme):
        raise UserError(
            f"router '{router.name}' is no DepthRouter, and retrofit routes tokens around whole layers; "
            "use mod or threshold_skip, or modbench.upcycle for experts"
        )
    if overrides(router, "feed_forward", DepthScheme):
        raise UserError(
            f"router '{router.name}' puts a feed-forward part of its own into each block, and layers "
            "of transformers keep theirs; use mod, and modbench.upcycle for experts"
        )
    if router.adds_residual:
        raise UserError(
            f"router '{router.name}' multiplies the residual stream by the gate, which changes each "
            "layer of a trained model; use residual = 'delta'"
        )
    return router


def rebuild(model: Any) -> None:
    """Build the routers that the config of ``model``, just constructed, describes."""
    described = getattr(model.config, "modbench", None) or {}
    if "depth" not in described:
        return
    depth = described["depth"]
    router = build_router(depth["name"], depth["options"])
    assert isinstance(router, DepthScheme)
    layers = model.base_model.layers
    _swap(layers, _build(router, model, layers, depth["seed"]), model)


def routers_of(model: nn.Module) -> list[RetrofitRouter]:
    """Return the routers of a retrofitted model, from the first layer to the last."""
    return [part for part in model.modules() if isinstance(part, RetrofitRouter)]


@contextmanager
def everything_selected(model: nn.Module) -> Iterator[None]:
    """Select all tokens, with a gate of 1, in the passes inside."""
    routers = routers_of(model)
    for router in routers:
        router.everything = True
    try:
        yield
    finally:
        for router in routers:
            router.everything = False


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


def _build(
    router: DepthScheme, model: Any, layers: nn.ModuleList, seed: int
) -> dict[int, RetrofitRouter]:
    """Return a router for each layer that is routed, with initial weights: the same ones for the same
    arguments, whatever ran before."""
    shape = shape_of(model.config)
    routed = [number for number in range(len(layers)) if router.routes(number, len(layers))]
    if not routed:
        raise UserError(f"no layer of {len(layers)} is routed; change every, offset or first_dense")
    state = torch.get_rng_state()
    torch.manual_seed(stream(seed, "router").initial_seed())
    parts = {}
    try:
        for number in routed:
            weight = next(layers[number].parameters())
            with authors_code(router, f"the scorer of layer {number}"):
                part = RetrofitRouter(router, shape, number)
                initialise(part, seed)
            part.to(weight.device)
            for parameter in part.parameters():
                parameter.data = parameter.data.to(weight.dtype)
            parts[number] = part
    finally:
        torch.set_rng_state(state)
    return parts


def initialise(part: nn.Module, seed: int) -> None:
    """Fill the parameters of ``part``, each module its own; none on the meta device."""
    if any(tensor.is_meta for tensor in [*part.parameters(), *part.buffers()]):
        return
    for module in part.modules():
        fill = getattr(module, "initialise", None)
        if callable(fill):
            fill(seed)


def _swap(layers: nn.ModuleList, parts: dict[int, RetrofitRouter], model: Any) -> None:
    windows = windows_of(model)
    for number, part in parts.items():
        layer: Any = layers[number]
        layer.__class__ = routed_class(type(layer))
        assert isinstance(layer, RoutedLayer)
        attention = getattr(layer, "self_attn", None)
        layer.modbench_layer = number
        layer.modbench_cache = getattr(attention, "layer_idx", number)
        layer.modbench_window = windows[number]
        part.train(layer.training)
        setattr(layer, ROUTER, part)


def _retype(model: Any, described: dict[str, Any]) -> None:
    """Make ``model`` and its config of the registered classes, so that they are saved as such."""
    kind = model_class(type(model))
    model.config.__class__ = kind.config_class  # type: ignore[attr-defined]
    model.__class__ = kind
    model.config.modbench = {**(getattr(model.config, "modbench", None) or {}), **described}
    model.config.architectures = [kind.__name__]
