"""Builds the model of a row: our decoder with a router, or a model of transformers, with a depth router
or without."""

from collections.abc import Mapping
from typing import Any

import torch

from modbench.errors import UserError
from modbench.model.init import stream
from modbench.model.language_model import LanguageModel
from modbench.model.shape import TRANSFORMERS, HubConfig, Shape
from modbench.routing.build import build_model, outline
from modbench.routing.depth_router import DepthScheme
from modbench.routing.registry import build_router

#: Families whose config states is_decoder, which they do not read.
_ALWAYS_CAUSAL = ("gpt_neox", "gpt_neox_japanese")


def model_of(shape: Shape, router: str, options: Mapping[str, Any], seed: int = 0) -> LanguageModel:
    """Build the model with initial weights: equal arguments give equal bits. A model of transformers has
    those of its folder, or random ones by its family's own initialisation. Raise a `UserError` for an
    unknown router or option, or a shape that can't be built."""
    if not isinstance(shape, HubConfig):
        return build_model(shape, build_router(router, options), seed)
    from modbench.hf.folder import load_weights

    scheme = _depth_scheme(router, options)
    if shape.weights is not None:
        return _wrapped(shape, load_weights(shape), scheme, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, TRANSFORMERS).initial_seed())
        return _wrapped(shape, _built(shape, "cpu"), scheme, seed)


def outline_of(shape: Shape, router: str, options: Mapping[str, Any]) -> LanguageModel:
    """Build the model without values, on the meta device. Raise as `model_of`."""
    if not isinstance(shape, HubConfig):
        return outline(shape, build_router(router, options))
    return _wrapped(shape, _built(shape, "meta"), _depth_scheme(router, options))


def _depth_scheme(router: str, options: Mapping[str, Any]) -> DepthScheme | None:
    """Return the depth router with which a model of transformers is retrofitted; None: it is not."""
    if router == TRANSFORMERS:
        return None
    from modbench.hf.retrofit.apply import router_of

    return router_of(router, options)


def _built(shape: HubConfig, device: str) -> Any:
    from modbench.hf.folder import build_from_code
    from modbench.hf.passes import build

    if shape.code is not None:
        return build_from_code(shape, device)
    return build(shape.config, device, shape.experts)


def _wrapped(shape: HubConfig, inner: Any, scheme: DepthScheme | None, seed: int = 0) -> LanguageModel:
    from modbench.hf.model import HubModel
    from modbench.hf.passes import check

    check(inner)
    if getattr(inner.config, "is_decoder", True) is False and shape.family not in _ALWAYS_CAUSAL:
        raise UserError(
            f"model_type '{shape.family}' is an encoder, whose tokens see later ones; give a causal "
            "language model"
        )
    if scheme is None:
        return HubModel(shape, inner)
    from modbench.hf.routed import retrofitted

    return retrofitted(shape, inner, scheme, seed)
