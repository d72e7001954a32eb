"""`retrofit`: depth routing for a causal language model of transformers, in place."""

from collections.abc import Mapping
from typing import Any

from modbench.errors import UserError
from modbench.hf.retrofit.build import build_routers, put_routers
from modbench.hf.retrofit.family import model_class
from modbench.hf.retrofit.refuse import decoder_layers
from modbench.routing.depth_router import DepthScheme
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
    parts = build_routers(built, model, layers, seed)
    settings = {"name": built.name, "options": built.options(), "seed": seed}
    put_routers(layers, parts, model)
    retype(model, {"depth": settings})
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


def retype(model: Any, described: dict[str, Any]) -> None:
    """Make ``model`` and its config of the registered classes, so that they are saved as such."""
    kind = model_class(type(model))
    model.config.__class__ = kind.config_class  # type: ignore[attr-defined]
    model.__class__ = kind
    model.config.modbench = {**(getattr(model.config, "modbench", None) or {}), **described}
    model.config.architectures = [kind.__name__]
