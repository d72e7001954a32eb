"""The decoder that all schemes share: embedding, layers, norm, head.

B sequences, T tokens, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.kernels.cross_entropy import Reduction, cross_entropy, recomputes_logits
from modbench.ledger import OUTSIDE, Counts, Ledger, Workload, component
from modbench.model.config import ModelConfig
from modbench.model.context import INTEGERS, Context
from modbench.model.counted import Place
from modbench.model.init import normal_
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer, run_layer, size, weight_ledger, with_upstream_grad

#: Runs a layer: the layer, its input (B, T, D), the context; returns its output.
RunLayer = Callable[[Layer, Tensor, Context], Tensor]


class Decoder(LanguageModel):
    """A causal language model over layers that are built already."""

    def __init__(self, config: ModelConfig, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.config: ModelConfig = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(layers)
        for number, layer in enumerate(self.layers):
            layer.place = Place(number, config.width)  # type: ignore[assignment]
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.head = None if config.tied_head else nn.Linear(config.width, config.vocabulary, bias=False)

    @property
    def scheme(self) -> str:
        return ""  # of a router: `modbench.routing.build.RoutedDecoder`

    @property
    def flops_source(self) -> Literal["closed form", "counted"]:
        """Source of FLOPs: closed forms alone, or with parts counted on the meta device."""
        parts = [part for part in self.modules() if isinstance(part, Layer)]
        return "closed form" if all(part.has_closed_form for part in parts) else "counted"

    def initialise(self, seed: int) -> None:
        """Fill all parameters. The parts that schemes share get the same values under every router."""
        normal_(self.embedding.weight, seed, "embedding")
        if self.head is not None:
            normal_(self.head.weight, seed, "head")
        for module in self.layers.modules():
            # Each module fills its own parameters, from random streams named after them.
            initialise = getattr(module, "initialise", None)
            if callable(initialise):
                initialise(seed)

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """Return logits (B, T, V), or (B, 1, V) if the context asks for those of the last tokens. Raise
        a `UserError` for no tokens, or lengths or a cache of another batch; a `ValueError` for a cache
        with the training rule, which may look at later tokens."""
        x_BTD = self.hidden(tokens_BT, context)
        with component("head"):
            return F.linear(x_BTD, self._head_weight())

    def logits_at(self, tokens_BT: Tensor, context: Context, rows_R: Tensor, places_R: Tensor) -> Tensor:
        """Return the logits (R, V) of `forward` at ``rows_R`` and ``places_R`` alone. Raise as there."""
        x_RD = self.hidden(tokens_BT, context)[rows_R, places_R]
        with component("head"):
            return F.linear(x_RD, self._head_weight())

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, context: Context) -> Tensor:
        """Return the mean cross-entropy of ``targets_BT`` in nats, without auxiliary losses. It never
        holds all logits at once; its FLOPs are those of `forward` and its backward pass. Raise a
        `UserError` as `forward`, or if targets have another shape."""
        return self._cross_entropy(tokens_BT, targets_BT, context, "mean")

    @torch.no_grad()
    def losses(self, tokens_BT: Tensor, targets_BT: Tensor, context: Context) -> Tensor:
        """Return the cross-entropy of each token in nats, (B, T), in float32 or wider, no gradient."""
        return self._cross_entropy(tokens_BT, targets_BT, context, "none").view_as(targets_BT)

    def _cross_entropy(
        self, tokens_BT: Tensor, targets_BT: Tensor, context: Context, reduction: Reduction
    ) -> Tensor:
        x_ND = self.hidden(tokens_BT, context).flatten(0, 1)
        if targets_BT.shape != tokens_BT.shape or targets_BT.dtype not in INTEGERS:
            raise UserError(
                f"targets are of shape {tuple(targets_BT.shape)} and {targets_BT.dtype} for tokens of "
                f"shape {tuple(tokens_BT.shape)}; give each token one, int32 or int64"
            )
        return cross_entropy(x_ND, self._head_weight(), targets_BT.flatten(), reduction)

    def _head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """Return the input of the head, (B, T, D), or (B, 1, D). Raise as `forward`."""
        context.check(tokens_BT)
        x_BTD = self.embedding(tokens_BT)
        context = replace(context, tokens_BT=tokens_BT)
        if context.cache is not None:
            if context.selection != "causal":
                raise ValueError(f"selection '{context.selection}' with a cache; it must be 'causal'")
            context.positions_BT = context.cache.positions(tokens_BT.shape[1], tokens_BT.device)
            context.past = context.cache.read
        for layer in self.layers:
            x_BTD = run_layer(layer, x_BTD, context)
        if context.cache is not None:
            context.cache.advance(context.lengths(x_BTD))
        if context.logits == "last":
            x_BTD = _last_tokens(x_BTD, context)
        return self.norm(x_BTD)  # type: ignore[no-any-return]

    def layer_by_layer(
        self, tokens_BT: Tensor, context: Context, run: RunLayer = nn.Module.__call__
    ) -> Iterator[tuple[int, Layer, Tensor, Tensor]]:
        """Run the layers with ``run`` and yield each layer's number, the layer, a copy of its input, in
        case the layer writes into it, and its output, (B, T, D) each. `hidden` has a loop of its own,
        since torch.compile cannot leave a program inside a generator for a layer that runs eagerly."""
        context.tokens_BT = tokens_BT
        x_BTD = self.embedding(tokens_BT)
        for number, layer in enumerate(self._layers()):
            before_BTD = x_BTD.detach().clone()
            x_BTD = run(layer, x_BTD, context)
            yield number, layer, before_BTD, x_BTD

    def ledger(self, workload: Workload) -> Ledger:
        """Return the closed form of `forward` for ``workload``, and of its backward pass where needed:
        frozen parameters, and what precedes the first trained one, get no gradient."""
        parts = []
        workload = replace(workload, input_gradient=self.embedding.weight.requires_grad)
        for layer in self._layers():
            part = layer.ledger(workload)
            parts.append(part)
            takes = layer.takes_gradient(workload)
            if workload.checkpoint and (takes or any(way == "backward" for (_, _, way), _ in part)):
                parts.append(part.recomputed())
            workload = workload.after(takes)
        parts.append(self._head_ledger(workload))
        return Ledger.sum(parts)

    def loss_ledger(self, workload: Workload) -> Ledger:
        """Return the closed form of `loss` and its backward pass: that of `forward`, and under
        convention ``executed`` the logits once more where `loss` computes them twice to save memory."""
        ledger = self.ledger(workload)
        learns = any(way == "backward" for (_, _, way), _ in ledger)
        if learns and recomputes_logits(workload.scored, self._head_weight()):
            ledger += self._head_ledger(workload).recomputed()
        return ledger

    def _head_ledger(self, workload: Workload) -> Ledger:
        workload = with_upstream_grad(workload, self.norm)
        return weight_ledger(workload, OUTSIDE, "head", self._head_weight(), workload.scored)

    def nominal_counts(self, workload: Workload) -> Counts:
        """Return the nominal counts of all layers."""
        return _joined(layer.nominal_counts(workload) for layer in self._layers())

    def expected_counts(self, workload: Workload) -> Counts:
        """Return the expected counts of all layers."""
        return _joined(layer.expected_counts(workload) for layer in self._layers())

    def parameter_count(self, kind: Literal["total", "active"] = "total") -> int:
        """Return the number of parameters: all, or the active ones of a token routed at every layer. The
        embedding counts whole in both, a tied head once. Parameters shared by layers count once, and so
        does their inactive part, as if a token used the same part in each layer."""
        total = size(self)
        return total if kind == "total" else total - self._inactive()

    def _inactive(self) -> int:
        """Return the number of inactive parameters. They belong to the innermost module that reports
        them: layers that share that module count them once."""
        inactive: dict[nn.Module, int] = {}
        for part, active in zip(self.layers, self.active_by_layer(), strict=True):
            idle = size(part) - active
            for inner in part.modules() if idle else ():
                reported = getattr(inner, "active_parameters", None)
                if callable(reported) and size(inner) - reported() == idle:
                    part = inner
            inactive[part] = idle
        return sum(inactive.values())

    def kv_bytes_per_token(self) -> int:
        """Return the bytes of keys and values of a token that every layer caches, as the dense decoder
        of this shape does."""
        config = self.config
        of_layer = 2 * config.key_heads * config.head_width
        return config.layers * of_layer * self.embedding.weight.element_size()

    def active_by_layer(self) -> list[int]:
        """Return the active parameters of each layer."""
        return [layer.active_parameters() for layer in self._layers()]

    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]


def _joined(parts: Iterable[Counts]) -> Counts:
    joined: dict[tuple[int, str], tuple[int, ...]] = {}
    for part in parts:
        joined |= part
    return joined


def _last_tokens(x_BTD: Tensor, context: Context) -> Tensor:
    """Return each sequence's last real token, (B, 1, D)."""
    if context.lengths_B is None:
        return x_BTD[:, -1:]
    index_B11 = (context.lengths_B - 1)[:, None, None]
    return x_BTD.gather(1, index_B11.expand(-1, 1, x_BTD.shape[2]))
