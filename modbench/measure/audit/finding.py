"""What a probe finds, what it is given, and how a model's layers are watched one by one.

B sequences, T tokens, D model width, V vocabulary.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn

from modbench.errors import FAULTS
from modbench.model.block import Block
from modbench.model.context import Context, Selection
from modbench.routing.build import RoutedDecoder, build_model
from modbench.typed import checked

#: Largest difference of two float64 results, relative to the largest of them, that is still rounding:
#: room for a router that computes its scores in float32.
ROUNDING = 1e-5
#: The same in the model's own dtype, where a decision may hang on the last digit besides.
COARSE = 1e-3
RULES: tuple[Selection, ...] = ("topk", "causal")
Unchecked = Literal["unchecked"]
#: Whether a probe passed, None if there is nothing that it could ask, ``unchecked`` if there is and it
#: has no way to; and the figure that says so.
Outcome = tuple[bool | Unchecked | None, str]
Verdict = Literal["passed", "failed", "not asked", "unchecked"]

NO_BLOCK = "which does not hold one block of modbench.model.block, to be held against"
NOBODY_SKIPS = "no token skips a layer, and no layer shows who is selected"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One probe's outcome; ``not asked`` where the router offers nothing to ask, ``unchecked`` where it
    does and the probe can't, at least in some layers; the figure says what. ``ranks``: whether a failure
    keeps the router out of the ranking."""

    probe: int
    name: str
    verdict: Verdict
    figure: str
    ranks: bool

    @property
    def failed(self) -> bool:
        return self.verdict == "failed"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """What is audited: a model, which no probe changes, and a seed for what is drawn."""

    model: RoutedDecoder
    seed: int = 0

    @cached_property
    def exact(self) -> RoutedDecoder:
        """A copy in float64, for a difference to be a bug and not rounding."""
        return copy.deepcopy(self.model).double().eval()

    @cached_property
    def own(self) -> RoutedDecoder:
        """A copy in the dtype that it scores in: some code is meant for that alone."""
        return self.twin().eval()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def is_exact(self) -> bool:
        """Whether the model's own dtype is float64: what is asked of ``exact`` is asked of it."""
        return self.dtype == torch.float64

    @cached_property
    def skips(self) -> bool:
        """Whether any layer shows who is selected, or leaves some tokens alone and not others."""
        return bool(self._skipped)

    @cached_property
    def _skipped(self) -> dict[int, bool]:
        """The layers that tokens skip, and whether they hold one plain block."""
        tokens_BT, found = self.tokens(2, 63), dict[int, bool]()
        for rule in RULES:
            context = Context(selection=rule)
            with torch.no_grad():
                for number, layer, *stream in layer_by_layer(self.exact, tokens_BT, context):
                    if selected(context, number, *stream) is not None:
                        found[number] = plain_block(layer) is not None
        return found

    def misreported(self, tokens_BT: Tensor) -> str:
        """What a layer tells the trace that can't be so, of ``tokens_BT``; empty if there is nothing, or
        the model doesn't run."""
        shape = tuple(tokens_BT.shape)
        try:
            for rule in RULES:
                context = Context(selection=rule)
                with torch.no_grad():
                    self.exact(tokens_BT, context)
                for (layer, name), shown in context.trace.tensors.items():
                    if name == "selected" and (shown.shape != shape or shown.dtype != torch.bool):
                        kind = f"{tuple(shown.shape)} {str(shown.dtype).removeprefix('torch.')}"
                        return f"layer {layer} shows selected {kind}; it must be {shape} bool ({rule})"
                for (layer, name), counts in context.trace.counts.items():
                    if not all(map(_whole, counts)):
                        told = ", ".join(map(repr, counts[:8]))
                        return f"layer {layer} counts {name} {told}; give whole numbers ({rule})"
                    if name == "depth" and len(counts) != shape[0]:
                        return (
                            f"layer {layer} counts {name} of {len(counts)} sequences; there are "
                            f"{shape[0]} ({rule})"
                        )
        except FAULTS:  # a router's own code runs here: what it raises is the probe's to tell
            return ""
        return ""

    def held(self, passed: bool | None, figure: str) -> Outcome:
        """The outcome of a probe that holds layers against the plain block that they hold: there may be
        some that tokens skip and that hold none, or several."""
        bare = [str(number) for number, holds in self._skipped.items() if not holds]
        if passed is False or not bare:
            return passed, figure
        others = f"; elsewhere {figure}" if passed and len(bare) < len(self._skipped) else ""
        return "unchecked", f"tokens skip layer {', '.join(bare)}, {NO_BLOCK}{others}"

    def twin(self) -> RoutedDecoder:
        return copy.deepcopy(self.model)

    def tokens(self, sequences: int, length: int, draw: int = 0) -> Tensor:
        """Random tokens (B, T); the ``draw``-th of this shape."""
        generator = torch.Generator().manual_seed(self.seed + 1000 * draw)
        shape = (sequences, length)
        tokens_BT = torch.randint(self.model.config.vocabulary, shape, generator=generator)
        return tokens_BT.to(device_of(self.model))

    def texts(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """``tokens_BT``, and another text of its shape: rounding tips no decision in both."""
        sequences, length = tokens_BT.shape
        return tokens_BT, self.tokens(sequences, length, draw=1)

    def fresh(self, **wanted: object) -> tuple[RoutedDecoder, set[str]]:
        """A model of the same shape and router with first weights and, where the router has such
        options and takes them, with the options ``wanted``; and which of them it took."""
        router, taken = self.model.router, set[str]()
        for name, value in wanted.items():
            try:
                hint = get_type_hints(type(router))[name]
                other = replace(router, **{name: checked(name, value, hint)})  # type: ignore[type-var]
                with torch.device("meta"):
                    RoutedDecoder(self.model.config, other)
            except Exception:  # a router's own code runs here: it does not take the option
                continue
            router = other
            taken.add(name)
        model = build_model(self.model.config, router, self.seed + 1)
        return model.to(device_of(self.model)), taken


def _whole(count: object) -> bool:
    return isinstance(count, int | float) and count >= 0 and float(count).is_integer()


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def largest(one_BTV: Tensor, other_BTV: Tensor) -> Tensor:
    """The largest difference of each position's values; infinite where one is no number."""
    return (one_BTV - other_BTV).abs().amax(-1).nan_to_num(nan=torch.inf)


def unmoved(one: Tensor, other: Tensor) -> bool:
    """Whether all values are equal; what is no number in both is, too."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def routers(module: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that are a router's: those named so."""
    return {name: p for name, p in module.named_parameters() if "router" in name.lower()}


@torch.no_grad()
def zero_routers(model: RoutedDecoder) -> RoutedDecoder:
    """``model`` with all router weights 0: all scores are equal."""
    for parameter in routers(model).values():
        parameter.zero_()
    return model


def layer_by_layer(
    model: RoutedDecoder, tokens_BT: Tensor, context: Context, written: set[int] | None = None
) -> Iterator[tuple[int, nn.Module, Tensor, Tensor]]:
    """Run ``model``: number, layer, and the stream (B, T, D) before and after it. What was before is a
    copy: a layer may write into what it is given, and then is among those ``written``."""
    context.tokens_BT = tokens_BT
    x_BTD = model.embedding(tokens_BT)
    for number, layer in enumerate(model.layers):
        given_BTD, before_BTD = x_BTD, x_BTD.detach().clone()
        x_BTD = layer(given_BTD, context)
        if written is not None and not torch.equal(given_BTD.nan_to_num(), before_BTD.nan_to_num()):
            written.add(number)
        yield number, layer, before_BTD, x_BTD


def selected(context: Context, number: int, before_BTD: Tensor, after_BTD: Tensor) -> Tensor | None:
    """Who entered layer ``number``, (B, T) bool: as the layer shows it, or where it shows nothing and
    leaves some tokens bit for bit alone, the others. None: nobody is told from anybody."""
    shown_BT = context.trace.tensors.get((number, "selected"))
    if shown_BT is not None:
        return shown_BT
    changed_BT = (after_BTD != before_BTD).any(-1)
    return changed_BT if changed_BT.any() and not changed_BT.all() else None


def plain_block(layer: nn.Module) -> Block | None:
    """The block that a routed layer holds, at whatever depth; None: it holds none, or several, or is
    one itself."""
    if isinstance(layer, Block):
        return None
    blocks = [module for module in layer.modules() if isinstance(module, Block)]
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    outer = [block for block in blocks if id(block) not in inside]
    return outer[0] if len(outer) == 1 else None


def own_parameters(module: nn.Module) -> list[str]:
    """Trained parameters that a scheme's own classes hold, not the shared ones of modbench.model."""
    return [
        f"{name}.{key}" if name else key
        for name, part in module.named_modules()
        if not type(part).__module__.startswith(("modbench.model.", "torch."))
        for key, parameter in part.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
