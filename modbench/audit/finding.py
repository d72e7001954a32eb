"""The result of a probe, the model under audit, and helpers that inspect its layers.

B sequences, T tokens, D model width, V vocabulary.
"""

import copy
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from modbench.model.block import Block
from modbench.model.context import Context, Selection
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.routing.build import RoutedDecoder, build_model, outline
from modbench.routing.router import Router
from modbench.typed import checked

#: Largest relative difference of two float64 results that counts as rounding. It leaves room for
#: routers that compute their scores in float32.
ROUNDING = 1e-5
#: The same in the model's own dtype.
COARSE = 1e-3
#: Largest router scores in `Subject.scaled`. Of 189 normally distributed scores up to 32, every fifth
#: is above 10; of those up to 10, one or two are above 8, so that a maximum of all depends on them.
LARGE = (32.0, 10.0)
#: Tokens that are enough where neither the length nor the batch matters.
FEW = 256
RULES: tuple[Selection, ...] = ("topk", "causal")
Unchecked = Literal["unchecked"]
#: True (passed), False (failed), None (nothing to ask) or ``unchecked`` (the probe applies but has no
#: means to decide); and one line with the figures.
Outcome = tuple[bool | Unchecked | None, str]
Verdict = Literal["passed", "failed", "not asked", "unchecked"]

NO_BLOCK = "which does not hold exactly one modbench.model.block.Block to compare with"
NO_SKIPPING = "no layer skips tokens or shows selected"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Outcome of one probe. ``ranks``: a failure keeps the router out of the ranking. The verdict is
    ``not asked`` if the probe does not apply to the router, and ``unchecked`` if it applies to a layer
    but cannot be evaluated there."""

    probe: int
    name: str
    verdict: Verdict
    figure: str
    ranks: bool

    @property
    def failed(self) -> bool:
        return self.verdict == "failed"


M = TypeVar("M", bound=LanguageModel)


@dataclass(frozen=True)
class ModelSubject:
    """The model under audit, which no probe changes; the seed of all random tokens; and the shapes
    (sequences, tokens) that are audited, so that a probe can run a test at one of them only. Without
    shapes, every test runs. ``brief``: leave out the longest tests.

    Of the copies that probes ask for, the last one is kept: several of them in float64 would take more
    memory than training."""

    model: LanguageModel
    seed: int = 0
    shapes: tuple[tuple[int, int], ...] = ()
    brief: bool = False
    _last: dict[str, LanguageModel] = field(default_factory=dict, repr=False)

    def is_first(self, tokens_BT: Tensor) -> bool:
        """Return True at the first shape."""
        return not self.shapes or tuple(tokens_BT.shape) == self.shapes[0]

    def is_longest(self, tokens_BT: Tensor) -> bool:
        """Return True at the shape with the longest sequences."""
        longest = max(self.shapes, key=lambda shape: shape[1], default=None)
        return longest in (None, tuple(tokens_BT.shape))

    def kept(self, name: str, build: Callable[[], M]) -> M:
        """The model called ``name``, built unless it was the last one asked for."""
        if name not in self._last:
            self.forget()
            self._last[name] = build()
        return self._last[name]  # type: ignore[return-value]

    def forget(self) -> None:
        """Let go of the model that is `kept`, and of freed memory, which glibc's allocator holds."""
        self._last.clear()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    @property
    def exact(self) -> LanguageModel:
        """A copy in float64, so that a difference is a bug rather than rounding."""
        return self.kept("exact", lambda: self.twin().double().eval())

    def scaled(self) -> Iterator[tuple[str, LanguageModel]]:
        """Yield copies with other router scores, by a description; none without a router of ours."""
        yield from ()

    @property
    def initial(self) -> LanguageModel:
        """The model with initial weights, in float64, where a router makes these differ."""
        return self.exact

    @property
    def own(self) -> LanguageModel:
        """A copy in the dtype in which the model is scored."""
        return self.kept("own", lambda: self.twin().eval())

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def is_exact(self) -> bool:
        """True if the model's own dtype is float64."""
        return self.dtype == torch.float64

    def twin(self) -> LanguageModel:
        return copy.deepcopy(self.model)

    def tokens(self, sequences: int, length: int, draw: int = 0) -> Tensor:
        """Random tokens (B, T); each ``draw`` gives other ones."""
        generator = torch.Generator().manual_seed(self.seed + 1000 * draw)
        vocabulary = self.model.config.vocabulary
        tokens_BT = torch.randint(vocabulary, (sequences, length), generator=generator)
        return tokens_BT.to(device_of(self.model))


@dataclass(frozen=True)
class Subject(ModelSubject):
    """A decoder with a router of ours under audit."""

    model: RoutedDecoder

    @property
    def exact(self) -> RoutedDecoder:
        return self.kept("exact", lambda: self.twin().double().eval())

    def scaled(self) -> Iterator[tuple[str, RoutedDecoder]]:
        """Yield copies in float64 that multiply the scores of each router by a constant, so that the
        largest of a random text is one of `LARGE`: scores as of a model that was trained for long. One
        also centres them, since with a bias all scores may have one sign."""
        self.forget()
        for scaling in (*map(_Scaled, LARGE), _Scaled(LARGE[0], centred=True)):
            centred = "centred and " if scaling.centred else ""
            yield f"{centred}scaled up to {scaling.most:g}", self._scaled(scaling)

    def _scaled(self, scaling: "_Scaled") -> RoutedDecoder:
        model = self.twin().double().eval()
        tokens_BT = self.tokens(3, 63)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] == "router":
                module.register_forward_hook(replace(scaling))

        def run_scaled(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
            for name, parameter in layer.named_parameters():
                if name.rpartition(".")[2] == "router" and parameter.shape[-1:] == x_BTD.shape[-1:]:
                    parameter.mul_(_factor(x_BTD @ parameter.T, scaling.most))
            return layer(x_BTD, context)  # type: ignore[no-any-return]

        with torch.no_grad():
            for _ in model.layer_by_layer(tokens_BT, Context(selection="causal"), run_scaled):
                pass
        return model

    @property
    def initial(self) -> RoutedDecoder:
        """A newly initialised model of the same shape and router, in float64."""
        return self.kept("initial", lambda: self._built(self.model.router))

    @property
    def own(self) -> RoutedDecoder:
        """A copy in the dtype in which the model is scored."""
        return self.kept("own", lambda: self.twin().eval())

    @cached_property
    def skipping(self) -> dict[int, bool]:
        """Layers that show ``selected``, or change some tokens and not others; True for those that hold
        one plain block."""
        tokens_BT = self.tokens(2, 63)
        layers = dict[int, bool]()
        for rule in RULES:
            context = Context(selection=rule)
            with torch.no_grad():
                for number, layer, *stream in self.exact.layer_by_layer(tokens_BT, context):
                    if selected(context, number, *stream) is not None:
                        layers[number] = plain_block(layer) is not None
        return layers

    def held(self, passed: bool | None, figure: str) -> Outcome:
        """Outcome of a probe that compares layers with the plain block they hold: ``unchecked`` if a
        layer that skips tokens holds none, or several."""
        bare = [str(number) for number, holds in self.skipping.items() if not holds]
        if passed is False or not bare:
            return passed, figure
        return "unchecked", f"tokens skip layer {', '.join(bare)}, {NO_BLOCK}"

    def twin(self) -> RoutedDecoder:
        return copy.deepcopy(self.model)

    def fresh(self, **wanted: object) -> tuple[RoutedDecoder, set[str]]:
        """A newly initialised model of the same shape in float64, its router with those of the options
        ``wanted`` that it has and accepts; and the names of these options."""
        self.forget()
        router = self.model.router
        taken = set[str]()
        for name, value in wanted.items():
            try:
                hint = get_type_hints(type(router))[name]
                other = replace(router, **{name: checked(name, value, hint)})  # type: ignore[type-var]
                outline(self.model.config, other)
            except Exception:  # a router's own code runs here: it rejects the option
                continue
            router = other
            taken.add(name)
        return self._built(router), taken

    def _built(self, router: Router) -> RoutedDecoder:
        model = build_model(self.model.config, router, self.seed + 1)
        return model.to(device_of(self.model)).double().eval()


@dataclass
class _Scaled:
    """Forward hook that multiplies all outputs by the factor that makes the largest of the first one
    ``most``; ``centred``: after it has subtracted that one's mean."""

    most: float
    centred: bool = False
    mean: float = 0.0
    factor: float = 0.0

    def __call__(self, module: nn.Module, given: object, scores: object) -> object:
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            return scores
        if not self.factor:
            self.mean = scores.mean().item() if self.centred and scores.numel() else 0.0
            self.factor = _factor(scores - self.mean, self.most)
        return (scores - self.mean) * self.factor


def _factor(scores: Tensor, most: float) -> float:
    """The factor that makes the largest of ``scores`` ``most``; 1 if they are smaller than rounding."""
    largest = scores.abs().max().item() if scores.numel() else 0.0
    return most / largest if largest > ROUNDING else 1.0


def rebuilt(model: RoutedDecoder, seed: int = 0) -> RoutedDecoder:
    """A model that is built with ``seed``, from a router with the same options, and loads the
    state of ``model``."""
    other = build_model(model.config, replace(model.router), seed)  # type: ignore[type-var]
    other = other.to(device=device_of(model), dtype=next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    return other


def few(tokens_BT: Tensor) -> Tensor:
    """The first sequences of ``tokens_BT``: two, or as many as have `FEW` tokens together."""
    return tokens_BT[: max(2, FEW // tokens_BT.shape[1])]


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def seeded(seed: int, on: torch.device) -> Iterator[None]:
    """Seed torch's generators; restore them at the end."""
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def ragged(lengths: Sequence[int], tokens_BT: Tensor) -> Tensor | None:
    """``lengths`` as a context takes them: None if no sequence of ``tokens_BT`` is padded."""
    padded = min(lengths) < tokens_BT.shape[1]
    return torch.tensor(lengths, device=tokens_BT.device) if padded else None


def next_tokens(text_BT: Tensor, cache: Cache, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The next ``lengths`` tokens of each sequence after those that ``cache`` has read, padded; and
    their `ragged` lengths."""
    first_B1 = torch.tensor(cache.read, device=text_BT.device)[:, None]
    places_BT = first_B1 + torch.arange(max(lengths), device=text_BT.device)
    new_BT = text_BT.gather(1, places_BT.clamp(max=text_BT.shape[1] - 1))
    return new_BT, ragged(lengths, new_BT)


def largest(one_BTV: Tensor, other_BTV: Tensor) -> Tensor:
    """Largest difference at each position, (B, T); infinite where a value is NaN."""
    return (one_BTV - other_BTV).abs().amax(-1).nan_to_num(nan=torch.inf)


def unmoved(before: Tensor, after: Tensor) -> bool:
    """Return True if all values are equal; NaN equals NaN."""
    if before.shape != after.shape:
        return False
    return bool(((before == after) | (before.isnan() & after.isnan())).all())


def routers(module: nn.Module) -> Mapping[str, nn.Parameter]:
    """Parameters with "router" in their name."""
    return {name: p for name, p in module.named_parameters() if "router" in name.lower()}


def outer_routers(layer: nn.Module) -> list[nn.Parameter]:
    """Router parameters of ``layer`` outside the block it holds."""
    block = plain_block(layer)
    inside = set() if block is None else {id(parameter) for parameter in block.parameters()}
    return [parameter for parameter in routers(layer).values() if id(parameter) not in inside]


@torch.no_grad()
def zero_routers(model: RoutedDecoder) -> RoutedDecoder:
    """Set all router weights of ``model`` to 0, which makes all scores equal."""
    for parameter in routers(model).values():
        parameter.zero_()
    return model


def selected(context: Context, number: int, before_BTD: Tensor, after_BTD: Tensor) -> Tensor | None:
    """Tokens that layer ``number`` processes, (B, T) bool: those it shows as ``selected``, else those
    it changes. None if it shows nothing and changes all tokens, or none."""
    shown_BT = context.trace.tensors.get((number, "selected"))
    if shown_BT is not None:
        return shown_BT
    changed_BT = (after_BTD != before_BTD).any(-1)
    return changed_BT if changed_BT.any() and not changed_BT.all() else None


def plain_block(layer: nn.Module) -> Block | None:
    """The one Block inside a routed layer, at any depth; None if there are none or several, or if the
    layer is a Block itself."""
    if isinstance(layer, Block):
        return None
    blocks = [module for module in layer.modules() if isinstance(module, Block)]
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    outer = [block for block in blocks if id(block) not in inside]
    return outer[0] if len(outer) == 1 else None
