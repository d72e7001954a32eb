"""A decoder layer of transformers that processes its selected tokens: the class of a layer is replaced
by a subclass of its own class, so that parameters keep their names.

B sequences, T tokens, D model width, R sequences with a selected token, K selected tokens of a sequence,
C cached and new tokens, P width of a rotary embedding.
"""

import copyreg
import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache as HubCache

from modbench.errors import UserError
from modbench.hf.cache import RoutedCacheLayer, routed_cache_layer
from modbench.model.config import ModelConfig
from modbench.model.context import Context, Selection, host_lengths
from modbench.model.trace import Trace
from modbench.routing.depth_router import DepthRouted, DepthScheme
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.routing.tokens import Tokens

#: The keyword argument under which a `Pass` goes down to the layers.
PASS = "modbench_pass"
#: The keyword argument under which a model gets the `Context` of its pass, in place of what it would
#: work out.
CONTEXT = "modbench_context"
#: The module of a retrofitted layer that selects tokens.
ROUTER = "depth_router"


@dataclass(kw_only=True)
class Pass:
    """One forward pass of a retrofitted model."""

    selection: Selection
    attention: str  #: implementation of attention, sdpa or eager
    ids_BT: Tensor | None  #: token ids
    real_BT: Tensor | None  #: True for tokens that are not padding; None: all of them
    forced_balance: bool = False  #: route evenly, whatever the scores
    first_row: torch.Tensor | None = None  #: see `Context`
    trace: Trace = field(default_factory=Trace)
    run: set[object] = field(default_factory=set)  #: what has run; a second time is a repetition
    #: Slots of each sequence, those of real tokens first; None: they are in this order already.
    order_BT: Tensor | None = field(init=False, default=None)
    lengths: list[int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.real_BT is None or bool(self.real_BT.all()):
            self.real_BT = None
            return
        self.lengths = self.real_BT.sum(1).tolist()
        order_BT = (~self.real_BT).to(torch.uint8).argsort(dim=1, stable=True)
        same_T = torch.arange(order_BT.shape[1], device=order_BT.device)
        if not torch.equal(order_BT, same_T.expand_as(order_BT)):
            self.order_BT = order_BT

    @property
    def is_padding(self) -> bool:
        """True if no token is real, and routers have nothing to select from."""
        return self.lengths is not None and not any(self.lengths)

    @classmethod
    def of(cls, context: Context, ids_BT: Tensor, attention: str) -> "Pass":
        """Return the pass of ``context`` on ``ids_BT``, which is padded on the right."""
        current = cls(
            selection=context.selection,
            attention=attention,
            ids_BT=ids_BT,
            real_BT=None,
            forced_balance=context.forced_balance,
            first_row=context.first_row,
            trace=context.trace,
        )
        if context.lengths_B is not None:
            current.lengths = context.lengths(ids_BT)
        return current

    def ordered(self, x_BT: Tensor) -> Tensor:
        """Move the real tokens of ``x_BT``, (B, T, ...), to the front."""
        return x_BT if self.order_BT is None else _taken(x_BT, self.order_BT)

    def restored(self, x_BT: Tensor) -> Tensor:
        """Undo `ordered`."""
        return x_BT if self.order_BT is None else _taken(x_BT, self.order_BT.argsort(dim=1))

    def context(self, x_BTD: Tensor, **more: Any) -> "LayerContext":
        """Return the context of a layer whose input is ``x_BTD``, in order."""
        lengths = None if self.lengths is None else host_lengths(self.lengths, x_BTD.device)
        ids_BT = None if self.ids_BT is None else self.ordered(self.ids_BT)
        return LayerContext(
            selection=self.selection,
            trace=self.trace,
            lengths_B=lengths,
            tokens_BT=ids_BT,
            forced_balance=self.forced_balance,
            first_row=self.first_row,
            **more,
        )

    def repeating(self, part: object) -> Any:
        """Return a context manager that marks the run of ``part`` as a repetition if it has run."""
        repeated = part in self.run
        self.run.add(part)
        return self.trace.repeating() if repeated else nullcontext()


@dataclass(kw_only=True)
class LayerContext(Context):
    """The context of a retrofitted layer; ``call`` runs the layer of transformers on some tokens."""

    call: "Call | None" = None

    def lengths(self, x_BTD: Tensor) -> list[int]:
        """Return the number of real tokens of each sequence of ``x_BTD``: 0 of one of padding alone."""
        return super().lengths(x_BTD) if self.lengths_B is None else self.lengths_B.on_host  # type: ignore[attr-defined,no-any-return]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a layer of transformers."""

    forward: Callable[..., Any]
    arguments: dict[str, Any]
    attention: str
    cached: RoutedCacheLayer | None
    window: int | None  #: a token attends to those at fewer positions before it
    reach: int  #: tokens of the longest sequence so far, padding included
    has_experts: bool
    name: str

    def __call__(self, gathered: GatheredTokens) -> Tensor:
        """Return the layer's output for the ``gathered`` tokens, (R, K, D)."""
        x_RKD, context = gathered.x_RKD, gathered.context
        new = context.lengths(x_RKD)
        if self.cached is not None:
            self.cached.expect(context.rows, new)
        arguments = dict(self.arguments)
        for name in ("position_ids", "position_embeddings"):
            value = arguments.get(name)
            if isinstance(value, Tensor):
                arguments[name] = gathered.gather(value)
            elif value is not None:
                arguments[name] = tuple(gathered.gather(part) for part in value)
        arguments["attention_mask"] = self._mask(x_RKD, context, new)
        if self.has_experts:
            arguments[PASS] = context
        y_RKD = self.forward(x_RKD, **arguments)
        if not isinstance(y_RKD, Tensor):
            raise UserError(
                f"{self.name} returns {type(y_RKD).__name__}, and a layer that is retrofitted must "
                "return a tensor; retrofit a model such as Llama or Qwen3"
            )
        return y_RKD

    def _mask(self, x_RKD: Tensor, context: Context, new: Sequence[int]) -> Tensor | None:
        """Return which keys each token attends to, (R, 1, K, C), as the implementation of attention
        takes it; None: all up to itself."""
        rows, queries = x_RKD.shape[:2]
        past = list(context.past) if self.cached is not None and any(context.past) else [0] * rows
        on = x_RKD.device
        positions_RK = context.positions(x_RKD)
        keys_RC = positions_RK
        if self.window is not None and self.cached is not None:
            keys_RC = self.cached.key_positions(positions_RK)
        wide = self.window is None or self.reach < self.window
        plain = not any(past) or (queries == 1 and min(past) == max(past))
        if self.attention == "sdpa" and wide and plain:
            return None
        keys = max(p + n for p, n in zip(past, new, strict=True)) if any(past) else queries
        past_R11, new_R11 = (torch.tensor(n, device=on)[:, None, None] for n in (past, list(new)))
        token_K1 = torch.arange(queries, device=on)[:, None]
        if not any(past):
            new_R11 = torch.full_like(new_R11, queries)  # what pads comes after all real tokens
        mask_RKC = torch.arange(keys, device=on) < past_R11 + torch.minimum(token_K1 + 1, new_R11)
        if self.window is not None:
            distance_RKC = positions_RK[:, :, None] - keys_RC[:, None, :]
            # A token that pads may lie anywhere: it attends to itself at the least.
            mask_RKC = mask_RKC & (distance_RKC < self.window) | _itself(mask_RKC, past_R11, new_R11)
        mask_R1KC = mask_RKC[:, None]
        if self.attention == "sdpa":
            return mask_R1KC
        lowest = torch.finfo(x_RKD.dtype).min
        return torch.where(mask_R1KC, 0.0, lowest).to(x_RKD.dtype)


class RetrofitRouter(DepthRouted):
    """Selects tokens as a `DepthRouter` of modbench does: its scores, its rule, its gate. The layer of
    transformers is the block."""

    def __init__(self, options: DepthScheme, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer, nn.Identity())  # type: ignore[arg-type]
        #: Select all tokens with a gate of 1, as a receipt does.
        self.everything = False

    @property
    def has_data_dependent_shapes(self) -> bool:  # type: ignore[override]
        return self.decides

    def _processed(
        self, x_BTD: Tensor, gathered: GatheredTokens, gate_BT: Tensor, context: Context
    ) -> Tensor:
        assert isinstance(context, LayerContext)
        assert context.call is not None
        y_RKD = context.call(gathered)
        if self.options.adds_residual:  # an exported router's; `apply` takes none
            gate_RK1 = gathered.gather(gate_BT)[..., None]
            return gathered.put_into(x_BTD, gathered.x_RKD + gate_RK1 * y_RKD)
        if self._gated():
            # x + gate * (y - x), to the bit y for a gate of 1.
            wide = torch.promote_types(x_BTD.dtype, gate_BT.dtype)
            gate_RK1 = gathered.gather(gate_BT)[..., None].to(wide)
            y_RKD = torch.lerp(gathered.x_RKD.to(wide), y_RKD.to(wide), gate_RK1)
        return gathered.put_into(x_BTD, y_RKD)

    def _gate(self, scores_BT: Tensor) -> Tensor:
        return torch.ones_like(scores_BT) if self.everything else super()._gate(scores_BT)

    def _topk(
        self, x_BTD: Tensor, scores_BT: Tensor, tokens: Tokens, context: Context
    ) -> tuple[Tensor, Sequence[int]]:
        if self.everything:
            return _all_of(scores_BT, tokens)
        return super()._topk(x_BTD, scores_BT, tokens, context)

    def _by_threshold(
        self, x_BTD: Tensor, scores_BT: Tensor, tokens: Tokens, context: Context
    ) -> tuple[Tensor, Sequence[int]]:
        if self.everything:
            return _all_of(scores_BT, tokens)
        return super()._by_threshold(x_BTD, scores_BT, tokens, context)


def _all_of(scores_BT: Tensor, tokens: Tokens) -> tuple[Tensor, Sequence[int]]:
    every_BT = torch.ones_like(scores_BT, dtype=torch.bool)
    return every_BT if tokens.real is None else tokens.real, tokens.lengths


class RoutedLayer(nn.Module):
    """The part of a retrofitted layer that comes before the layer's own class."""

    modbench_own: type[nn.Module]  #: the layer's own class
    modbench_layer: int  #: depth, and place in the cache
    modbench_window: int | None  #: of sliding attention

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        named |= named_arguments(self, arguments)
        current: Pass | None = named.pop(PASS, None)
        if current is None:
            raise UserError(
                f"{type(self).__name__} was called without the model around it; call the causal "
                "language model itself (for hidden states with output_hidden_states=True)"
            )
        router: RetrofitRouter = getattr(self, ROUTER)
        cache = next((value for value in named.values() if isinstance(value, HubCache)), None)
        rows, tokens = hidden_states.shape[:2]
        cached = None if cache is None else routed_cache_layer(cache, self.modbench_layer, rows)
        x_BTD = current.ordered(hidden_states)
        for name in ("position_ids", "position_embeddings"):
            if named.get(name) is not None:
                named[name] = _each_row(named[name], rows, current)
        call = Call(
            forward=super().forward,
            arguments=named,
            attention=current.attention,
            cached=cached,
            window=self.modbench_window,
            reach=tokens + (0 if cached is None else cached.seen),
            has_experts=isinstance(getattr(getattr(self, "mlp", None), "experts", None), RoutedExperts),
            name=type(self).__name__,
        )
        more: dict[str, Any] = {"call": call}
        if cached is not None:
            store = cached.store
            more |= {"cache": store, "past": store.read}
            more["positions_BT"] = store.positions(tokens, x_BTD.device)
        context = current.context(x_BTD, **more)
        with current.repeating(router):
            out_BTD = x_BTD if current.is_padding else _routed(router, x_BTD, context)
        if cached is not None:
            cached.advance(tokens, context.lengths(x_BTD))
        return current.restored(out_BTD)


def _routed(router: RetrofitRouter, x_BTD: Tensor, context: LayerContext) -> Tensor:
    """Run ``router``; under torch.compile eagerly if the scores decide how many tokens it selects."""
    if torch.compiler.is_compiling() and router.has_data_dependent_shapes:
        return _run_eagerly(router, x_BTD, context)
    return router(x_BTD, context)  # type: ignore[no-any-return]


@torch._disable_dynamo  # torch.compiler.disable would import the compiler here
def _run_eagerly(router: RetrofitRouter, x_BTD: Tensor, context: LayerContext) -> Tensor:
    return router(x_BTD, context)  # type: ignore[no-any-return]


class Made(type):
    """The class of classes that are made at run time. A pickle has their bases, and the function that
    makes them from these, ``modbench_made_by``."""

    modbench_made_by: Callable[..., Any]


copyreg.pickle(Made, lambda made: (made.modbench_made_by, made.__bases__))


@functools.cache
def layer_class(part: type[nn.Module], kind: type[nn.Module]) -> Any:
    """Return the subclass of ``part``, such as `RoutedLayer`, and of the layer class ``kind``."""
    name = part.__name__.removesuffix("Layer") + kind.__name__
    own = {"modbench_own": getattr(kind, "modbench_own", kind), "modbench_made_by": layer_class}
    return Made(name, (part, kind), own)


def named_arguments(layer: nn.Module, arguments: Sequence[Any]) -> dict[str, Any]:
    """Return ``arguments``, those after the hidden states, by the names that the layer's own class gives
    them."""
    own: Any = layer.modbench_own
    names = list(inspect.signature(own.forward).parameters)[2:]
    return dict(zip(names, arguments, strict=False))


def _each_row(value: Any, rows: int, current: Pass) -> Any:
    """Give each sequence its own positions, in order."""
    if isinstance(value, tuple | list):
        return tuple(_each_row(part, rows, current) for part in value)
    return current.ordered(value.expand(rows, *value.shape[1:]))


def _itself(mask_RKC: Tensor, past_R11: Tensor, new_R11: Tensor) -> Tensor:
    """Return the last key that each token may attend to in ``mask_RKC``."""
    _, queries, keys = mask_RKC.shape
    on = mask_RKC.device
    last = past_R11 + torch.minimum(torch.arange(queries, device=on)[:, None] + 1, new_R11) - 1
    return torch.arange(keys, device=on) == last


def _taken(x_BT: Tensor, index_BT: Tensor) -> Tensor:
    rest = x_BT.shape[2:]
    index = index_BT.view(*index_BT.shape, *(1 for _ in rest)).expand(*index_BT.shape, *rest)
    return x_BT.gather(1, index)
