"""The result of a probe, the model under audit, and helpers that inspect its layers.

B sequences, T tokens, D model width, V vocabulary.
"""

import copy
import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from modbench.model.block import Block
from modbench.model.context import Context, Selection
from modbench.model.decoder import RunLayer
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.routing.build import RoutedDecoder, build_model, outline
from modbench.typed import built

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
Verdict = Literal["not asked", "passed", "unchecked", "failed"]

NO_BLOCK = "which does not hold exactly one modbench.model.block.Block to compare with"
NO_SKIPPING = "no layer skips tokens or shows selected"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Outcome of one probe. ``ranks``: a failure keeps the router out of the ranking."""

    probe: int
    name: str
    verdict: Verdict
    figure: str
    ranks: bool

    @property
    def failed(self) -> bool:
        return self.verdict == "failed"


M = TypeVar("M", bound=LanguageModel, covariant=True)


@dataclass(frozen=True)
class Audited(Generic[M]):
    """The model under audit, which no probe changes; the seed of all random tokens; and the shapes
    (sequences, tokens) that are audited, so that a probe can run a test at one of them only. Without
    shapes, every test runs. ``brief``: leave out the longest tests.

    Of the copies that probes ask for, the last one is kept: several of them in float64 would take more
    memory than training."""

    model: M
    seed: int = 0
    shapes: tuple[tuple[int, int], ...] = ()
    brief: bool = False
    _last: dict[str, Any] = field(default_factory=dict, repr=False)

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
        return self._last[name]  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Let go of the model that is `kept`."""
        self._last.clear()
        return_freed_memory()

    def twin(self) -> M:
        return copy.deepcopy(self.model)

    @property
    def exact(self) -> M:
        """A copy in float64, so that a difference is a bug rather than rounding."""
        return self.kept("exact", lambda: self.twin().double().eval())

    @property
    def own(self) -> M:
        """A copy in the dtype in which the model is scored."""
        return self.kept("own", lambda: self.twin().eval())

    @property
    def initial(self) -> M:
        """The model with initial weights, in float64, where a router makes these differ."""
        return self.exact

    def scaled(self) -> Iterator[tuple[str, M]]:
        """Yield copies with other router scores, by a description; none without a router of ours."""
        yield from ()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def tokens(self, sequences: int, length: int, draw: int = 0) -> Tensor:
        """Random tokens (B, T); each ``draw`` gives other ones."""
        generator = torch.Generator().manual_seed(self.seed + 1000 * draw)
        vocabulary = self.model.config.vocabulary
        tokens_BT = torch.randint(vocabulary, (sequences, length), generator=generator)
        return tokens_BT.to(device_of(self.model))


ModelSubject = Audited[LanguageModel]


@dataclass(frozen=True)
class Subject(Audited[RoutedDecoder]):
    """A decoder with a router of ours under audit."""

    def scaled(self) -> Iterator[tuple[str, RoutedDecoder]]:
        """Yield copies in float64 that multiply the scores of each router by a constant, so that the
        largest of a random text is one of `LARGE`: scores as of a model that was trained for long. One
        also centres them, since with a bias all scores may have one sign."""
        self.forget()
        for most, centred in (*((most, False) for most in LARGE), (LARGE[0], True)):
            model = self.twin().double().eval()
            for name, module in model.named_modules():
                if name.rpartition(".")[2] == "router":
                    module.register_forward_hook(_scaling(most, centred))

            def run_scaled(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
                for name, parameter in layer.named_parameters():
                    if name.rpartition(".")[2] == "router" and parameter.shape[-1:] == x_BTD.shape[-1:]:
                        parameter.mul_(_factor(x_BTD @ parameter.T, most))  # noqa: B023
                return layer(x_BTD, context)  # type: ignore[no-any-return]

            with torch.no_grad():
                deque(passes(model, self.tokens(3, 63), ("causal",), run_scaled), maxlen=0)
            yield f"{'centred and ' * centred}scaled up to {most:g}", model

    @property
    def initial(self) -> RoutedDecoder:
        """A newly initialised model of the same shape and router, in float64."""
        return self.kept("initial", lambda: self.fresh()[0])

    @cached_property
    def skipping(self) -> dict[int, bool]:
        """Layers that show ``selected``, or change some tokens and not others; True for those that hold
        one plain block."""
        with torch.no_grad():
            return {
                step.number: step.block is not None
                for step in passes(self.exact, self.tokens(2, 63))
                if step.selected_BT is not None
            }

    def held(self, passed: bool | None, figure: str) -> Outcome:
        """Outcome of a probe that compares layers with the plain block they hold: ``unchecked`` if a
        layer that skips tokens holds none, or several."""
        bare = [str(number) for number, holds in self.skipping.items() if not holds]
        if passed is False or not bare:
            return passed, figure
        return "unchecked", f"tokens skip layer {', '.join(bare)}, {NO_BLOCK}"

    def fresh(self, **wanted: object) -> tuple[RoutedDecoder, set[str]]:
        """A newly initialised model of the same shape in float64, its router with those of the options
        ``wanted`` that it has and accepts; and the names of these options."""
        self.forget()
        router = self.model.router
        taken = set[str]()
        for name, value in wanted.items():
            try:
                other = built("router", {**router.options(), name: value}, type(router))
                outline(self.model.config, other)
            except Exception:  # a router's own code runs here: it rejects the option
                continue
            router = other
            taken.add(name)
        model = build_model(self.model.config, router, self.seed + 1)
        return model.to(device_of(self.model)).double().eval(), taken


@dataclass(frozen=True)
class Step:
    """The pass of one layer, its input and output, (B, T, D) each; the tokens that these differ in;
    those that the layer shows as ``selected``, if it does; and those it processes: the former if it
    shows nothing, and None if it then changes all tokens, or none."""

    context: Context
    rule: Selection
    number: int
    layer: Layer
    block: Block | None
    x_BTD: Tensor
    out_BTD: Tensor
    changed_BT: Tensor
    shown_BT: Tensor | None
    selected_BT: Tensor | None


def passes(
    model: RoutedDecoder,
    tokens_BT: Tensor,
    rules: Sequence[Selection] = RULES,
    run: RunLayer = nn.Module.__call__,
) -> Iterator[Step]:
    """Run the layers of ``model`` under each of the ``rules`` with ``run``; yield each `Step`."""
    for rule in rules:
        context = Context(selection=rule)
        for number, layer, x_BTD, out_BTD in model.layer_by_layer(tokens_BT, context, run):
            changed_BT = (out_BTD != x_BTD).any(-1)
            shown_BT = context.trace.tensors.get((number, "selected"))
            some = bool(changed_BT.any()) and not bool(changed_BT.all())
            selected_BT = changed_BT if shown_BT is None and some else shown_BT
            place = context, rule, number, layer, plain_block(layer)
            yield Step(*place, x_BTD, out_BTD, changed_BT, shown_BT, selected_BT)


def _scaling(most: float, centred: bool) -> Callable[..., object]:
    """Forward hook that multiplies all outputs by the factor that makes the largest of the first one
    ``most``; ``centred``: after it has subtracted that one's mean."""
    first: list[float] = []

    def scaled(module: nn.Module, given: object, scores: object) -> object:
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            return scores
        if not first:
            mean = scores.mean().item() if centred and scores.numel() else 0.0
            first[:] = mean, _factor(scores - mean, most)
        return (scores - first[0]) * first[1]

    return scaled


def _factor(scores: Tensor, most: float) -> float:
    """The factor that makes the largest of ``scores`` ``most``; 1 if they are smaller than rounding."""
    largest = scores.abs().max().item() if scores.numel() else 0.0
    return most / largest if largest > ROUNDING else 1.0


def rebuilt(model: RoutedDecoder, seed: int = 0) -> RoutedDecoder:
    """A model that is built with ``seed``, from a router with the same options, and loads the
    state of ``model``."""
    other = build_model(model.config, replace(model.router), seed)  # type: ignore[type-var]
    other = other.to(next(model.parameters()))
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


def most(one: Tensor, other: Tensor) -> str:
    """The largest difference, in two digits."""
    return f"{(one - other).abs().max().item():.1e}"


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


def holder(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """The innermost module outside PyTorch that holds the parameter ``name``, after its own name."""
    path = name.rpartition(".")[0]
    while type(model.get_submodule(path)).__module__.startswith("torch."):
        path = path.rpartition(".")[0]
    return path, model.get_submodule(path)


def plain_block(layer: nn.Module) -> Block | None:
    """The one Block inside a routed layer, at any depth; None if there are none or several, or if the
    layer is a Block itself."""
    if isinstance(layer, Block):
        return None
    blocks = [module for module in layer.modules() if isinstance(module, Block)]
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    outer = [block for block in blocks if id(block) not in inside]
    return outer[0] if len(outer) == 1 else None


def return_freed_memory(*, at_once: bool = False) -> None:
    """Give memory that was freed back to the system, where glibc's allocator holds it. ``at_once``: from
    now on, blocks of a megabyte or more when they are freed."""
    with suppress(OSError, TypeError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        if at_once:
            library.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD
        library.malloc_trim(0)
