"""What a probe finds, what it is given, and how a model's layers are watched one by one.

B sequences, T tokens, D model width, V vocabulary.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from modbench.model.block import Block
from modbench.model.context import Context, Selection
from modbench.model.decoder import Decoder, build_model
from modbench.typed import checked

#: Largest difference of two float64 results, relative to the largest of them, that is still rounding:
#: room for a router that computes its scores in float32.
ROUNDING = 1e-5
RULES: tuple[Selection, ...] = ("topk", "causal")
#: Whether a probe passed, and the figure that says so.
Outcome = tuple[bool, str]

NOBODY_SKIPS = "no layer shows who is selected"
NO_BLOCK = "no layer that shows who is selected holds a plain block"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One probe's outcome. ``ranks``: whether a failure keeps the router out of the ranking."""

    probe: int
    name: str
    passed: bool
    figure: str
    ranks: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """What is audited: a model, which no probe changes, and a seed for what is drawn."""

    model: Decoder
    seed: int = 0

    @cached_property
    def exact(self) -> Decoder:
        """A copy in float64, for a difference to be a bug and not rounding."""
        return copy.deepcopy(self.model).double().eval()

    @cached_property
    def shows_selected(self) -> bool:
        """Whether any layer says who goes through it and who passes it by."""
        tokens_BT = self.tokens(1, 8)
        context = Context()
        with torch.no_grad():
            copy.deepcopy(self.model).eval()(tokens_BT, context)
        return any(name == "selected" for _, name in context.trace.tensors)

    def twin(self) -> Decoder:
        return copy.deepcopy(self.model)

    def tokens(self, sequences: int, length: int, draw: int = 0) -> Tensor:
        """Random tokens (B, T); the ``draw``-th of this shape."""
        generator = torch.Generator().manual_seed(self.seed + 1000 * draw)
        shape = (sequences, length)
        tokens_BT = torch.randint(self.model.config.vocabulary, shape, generator=generator)
        return tokens_BT.to(device_of(self.model))

    def fresh(self, **wanted: object) -> tuple[Decoder, set[str]]:
        """A model of the same shape and router with first weights and, where the router has such
        options and takes them, with the options ``wanted``; and which of them it took."""
        router, taken = self.model.router, set[str]()
        for name, value in wanted.items():
            try:
                hint = get_type_hints(type(router))[name]
                other = replace(router, **{name: checked(name, value, hint)})  # type: ignore[type-var]
                with torch.device("meta"):
                    Decoder(self.model.config, other)
            except Exception:  # a router's own code runs here: it does not take the option
                continue
            router = other
            taken.add(name)
        model = build_model(self.model.config, router, self.seed + 1)
        return model.to(device_of(self.model)), taken


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def largest(one_BTV: Tensor, other_BTV: Tensor) -> Tensor:
    """The largest difference of each position's values; infinite where one is no number."""
    return (one_BTV - other_BTV).abs().amax(-1).nan_to_num(nan=torch.inf)


def routers(module: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that are a router's: those named so."""
    return {name: p for name, p in module.named_parameters() if "router" in name.lower()}


@torch.no_grad()
def zero_routers(model: Decoder) -> Decoder:
    """``model`` with all router weights 0: all scores are equal."""
    for parameter in routers(model).values():
        parameter.zero_()
    return model


def layer_by_layer(
    model: Decoder, tokens_BT: Tensor, context: Context
) -> Iterator[tuple[int, nn.Module, Tensor, Tensor]]:
    """Run ``model``: number, layer, and the stream (B, T, D) before and after it."""
    context.tokens_BT = tokens_BT
    x_BTD = model.embedding(tokens_BT)
    for number, layer in enumerate(model.layers):
        before_BTD = x_BTD
        x_BTD = layer(before_BTD, context)
        yield number, layer, before_BTD, x_BTD


def plain_block(layer: nn.Module) -> Block | None:
    """The block that a routed layer puts around itself; None: it holds none, or several."""
    blocks = [child for child in layer.children() if isinstance(child, Block)]
    return blocks[0] if len(blocks) == 1 else None
