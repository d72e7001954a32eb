"""`upcycle`: experts that start as copies of a dense MLP (Komatsuzaki et al. 2023, sparse upcycling).

E experts, D model width, F width of the MLP.
"""

from typing import Any

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.hf.retrofit.apply import retype
from modbench.hf.retrofit.build import build_experts, put_experts
from modbench.hf.retrofit.refuse import decoder_layers
from modbench.routing.expert_router import ExpertScheme
from modbench.routing.registry import build_router, preset_options, router_class
from modbench.routing.router import Router

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
