"""`retrofit`: depth routing for a causal language model of transformers, in place; `upcycle`: experts
that start as copies of a dense MLP (Komatsuzaki et al. 2023, sparse upcycling); and the receipt of a
retrofit.

B sequences, T tokens, V vocabulary, E experts, D model width, F width of the MLP.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.hf.retrofit.build import (
    build_experts,
    build_routers,
    everything_selected,
    put_experts,
    put_routers,
)
from modbench.hf.retrofit.family import model_class
from modbench.hf.retrofit.refuse import decoder_layers
from modbench.routing.depth_router import DepthScheme
from modbench.routing.expert_router import ExpertScheme
from modbench.routing.registry import build_router, preset_options, router_class
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


#: Sequences and tokens of the comparison: more than a batch of one, and few enough for a large model.
_SHAPE = (2, 64)


@torch.no_grad()
def receipt(original: Any, retrofitted: Any, tokens_BT: Tensor | None = None) -> dict[str, Any]:
    """Return the largest difference of a logit between ``original`` and ``retrofitted`` with all tokens
    selected and gates of 1, and keep it in the config of ``retrofitted``, which is saved with it.

    ``tokens_BT``: token ids; None: random ones. Raise a `UserError` if ``retrofitted`` is not."""
    import transformers

    if not getattr(retrofitted.config, "modbench", None):
        raise UserError(
            f"{type(retrofitted).__name__} is not retrofitted; give the model that modbench.retrofit "
            "or modbench.upcycle returned"
        )
    device = next(retrofitted.parameters()).device
    if tokens_BT is None:
        generator = torch.Generator().manual_seed(0)
        tokens_BT = torch.randint(original.config.vocab_size, _SHAPE, generator=generator)
    logits = []
    for model in (original, retrofitted):
        training = model.training
        model.eval()
        try:
            with everything_selected(model):
                logits.append(model(tokens_BT.to(next(model.parameters()).device)).logits.to(device))
        finally:
            model.train(training)
    written = {
        "largest_logit_difference": (logits[0].float() - logits[1].float()).abs().max().item(),
        "largest_logit": logits[0].abs().max().item(),
        "tokens": tokens_BT.numel(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    retrofitted.config.modbench = {**copy.deepcopy(retrofitted.config.modbench), "receipt": written}
    return written


_WORKS = "models with gate, up and down projections and SiLU, such as Llama and Qwen3, work"


def upcycle(
    model: Any,
    experts: int | None = None,
    router: str | ExpertScheme = "token_choice",
    *,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Replace each MLP of ``model``, a dense causal language model of transformers, by experts that are
    copies of it, in place, and return it.

    ``experts``: their number; None: as the router says. ``router``: an `ExpertRouter` by name with its
    ``options``, or one that is built. ``seed`` fixes the initial weights of its scorers. Where gates sum
    to 1, as token choice has them, the logits are the dense model's but for rounding; where experts
    choose, only while each takes all tokens. Each expert is as wide as the MLP. Raise a `UserError` for
    a model or router that can't be used; the model is then as it was."""
    if experts is not None:
        options["experts"] = experts
    layers = decoder_layers(model)
    weights = [_mlp_weights(layer) for layer in layers]
    built = _router_of(router, options, weights[0][1].shape[1])
    parts = build_experts(built, model, layers, seed)
    for part, (up_FD, down_DF) in zip(parts.values(), weights, strict=True):
        bank = part.experts.bank
        with torch.no_grad():
            bank.up.copy_(up_FD.expand_as(bank.up))
            bank.down.copy_(down_DF.expand_as(bank.down))
    put_experts(layers, parts)
    settings = {"name": built.name, "options": built.options(), "seed": seed, "layers": list(parts)}
    retype(model, {"experts": settings})
    return model


def _mlp_weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weights of the layer's MLP as a bank has them, (2 F, D), gate first, and (D, F). Raise
    a `UserError` if it is of another kind."""
    mlp: Any = getattr(layer, "mlp", None)
    kind = type(mlp).__name__
    parts = dict(mlp.named_children()) if mlp is not None else {}
    linear = {name: part for name, part in parts.items() if isinstance(part, nn.Linear)}
    if "experts" in parts:
        raise UserError(f"{kind} has experts already; upcycle needs a dense model: {_WORKS}")
    fused = {*linear} == {"gate_up_proj", "down_proj"}
    if not fused and {*linear} != {"gate_proj", "up_proj", "down_proj"}:
        raise UserError(f"{kind} has parts {', '.join(parts) or 'none'}; {_WORKS}")
    if any(part.bias is not None for part in linear.values()):
        raise UserError(f"{kind} has biases, and an expert has none; {_WORKS}")
    activation = next((part for name, part in parts.items() if name not in linear), None)
    probe = torch.linspace(-3, 3, 7)
    if activation is None or not torch.equal(activation(probe), nn.functional.silu(probe)):
        raise UserError(f"{kind} has the activation {type(activation).__name__}; {_WORKS}")
    if fused:
        up_FD = linear["gate_up_proj"].weight
    else:
        up_FD = torch.cat((linear["gate_proj"].weight, linear["up_proj"].weight))
    return up_FD.detach(), linear["down_proj"].weight.detach()


def _router_of(router: str | Router, options: dict[str, Any], width: int) -> ExpertScheme:
    if isinstance(router, str):
        name, preset = preset_options(router)
        wide = {"expert_width": width} if issubclass(router_class(name), ExpertScheme) else {}
        router = build_router(name, {**preset, **wide, **options})
    elif options:
        raise UserError(
            f"options {', '.join(sorted(options))} are given with a router that is built; set them there"
        )
    if not isinstance(router, ExpertScheme):
        raise UserError(
            f"router '{router.name}' is no ExpertRouter, and upcycle makes experts; use token_choice or "
            "expert_choice, or modbench.retrofit for depth routing"
        )
    # What would keep the sum over a token's experts from being what the dense MLP gives.
    needed = {"expert_width": width, "shared_experts": 0, "scaling": 1.0}
    if not router.assigns:
        needed |= {"renormalise": True}
    if router.no_ops():
        needed |= {"no_op_experts": 0}
    for option, value in needed.items():
        actual = getattr(router, option, value)
        if actual != value:
            raise UserError(
                f"option {option} is {actual!r}, with which experts that are copies would not give what "
                f"the dense MLP does; set {option} = {value!r}"
            )
    return router
