"""Parts of the decoder that state no ledger: their FLOPs are counted on the meta device.

B sequences, T tokens, D model width.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modbench import Router
from modbench.errors import UserError
from modbench.ledger import Workload, incremental_counts
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.build import build_model
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.routing.topk import capacity_tokens, counts_to_host, highest

sys.path.append(str(Path(__file__).parents[1] / "routers"))
import layer_checks as checks

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


@dataclass(frozen=True, kw_only=True)
class OfLayers(Router):
    """Every second layer is a ``kind``."""

    name = "of_layers"

    kind: type

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        if issubclass(self.kind, FeedForward):
            return Block(model, layer, self.kind(model))
        return self.kind(model, layer) if layer else Block(model, layer)


class TopQuarter(Layer):
    """A learned selection without a ledger, labels or nominal counts."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.block = layer, Block(model, layer)
        self.scores = nn.Linear(model.width, 1)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        scores_BT = self.scores(x_BTD).squeeze(-1)
        lengths, before = context.lengths(x_BTD), context.before(x_BTD)
        counts, _ = incremental_counts(lambda n: capacity_tokens(0.25, n), lengths, before)
        if context.selection == "topk":
            selected_BT = highest(scores_BT.detach(), counts, context.real(x_BTD))
        else:
            selected_BT = scores_BT > 0
            real_BT = context.real(x_BTD)
            selected_BT = selected_BT if real_BT is None else selected_BT & real_BT
            counts = counts_to_host(selected_BT.sum(1), counts)
        context.trace.count(self.layer, "depth", counts)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        if not any(counts):
            return x_BTD
        inner = GatheredTokens(x_BTD, selected_BT, counts, context, layer=self.layer)
        gate_RK = inner.gather(scores_BT).sigmoid()
        delta_RKD = self.block.delta(inner.x_RKD, inner.context)
        return inner.add_to(x_BTD, delta_RKD * gate_RK[..., None])


class Bottleneck(FeedForward):
    """A dense part without a ledger."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(model.width, 5), nn.Linear(5, model.width)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.up(self.down(x_BTD).relu())


class ReadsValues(Layer):
    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(model.width))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return x_BTD * self.weight if x_BTD.sum().item() > 0 else x_BTD


@dataclass(frozen=True)
class Made(checks.Scheme):
    made: Router = field(default_factory=lambda: OfLayers(kind=Bottleneck))

    def built(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        return build_model(self.shape, self.made).to(device, dtype)


@pytest.mark.parametrize("kind", [TopQuarter, Bottleneck], ids=lambda kind: kind.__name__)
def test_a_counted_ledger_equals_what_is_executed(kind: type) -> None:
    scheme = Made("of_layers", {}, SHAPE, OfLayers(kind=kind))
    checks.costs_what_it_selects(scheme, torch.float32)
    assert scheme.built().flops_source == "counted"


def test_without_padding_a_batch_costs_what_its_sequences_cost_alone() -> None:
    model = Made("of_layers", {}, SHAPE, OfLayers(kind=TopQuarter)).built()
    counts = {(1, "depth"): (3, 0, 7)}
    lengths = (9, 4, 17)
    together = model.ledger(Workload(lengths=lengths, counts=counts))
    alone = [
        model.ledger(Workload(lengths=(n,), counts={(1, "depth"): (k,)}))
        for n, k in zip(lengths, counts[1, "depth"], strict=True)
    ]
    assert together.total() == sum(ledger.total() for ledger in alone) > 0


def test_a_layer_that_needs_values_is_named() -> None:
    model = Made("of_layers", {}, SHAPE, OfLayers(kind=ReadsValues)).built()
    with pytest.raises(UserError, match="layer 1 has no ledger and cannot be counted on the meta"):
        model.ledger(Workload.uniform(1, 9))


class ReturnsNothing(Layer):
    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD.sum()


def test_a_layer_that_returns_no_stream_is_named() -> None:
    model = Made("of_layers", {}, SHAPE, OfLayers(kind=ReturnsNothing)).built()
    words = "forward of ReturnsNothing in layer 1 returned NoneType; expected a tensor of shape"
    with pytest.raises(UserError, match=words):
        model.ledger(Workload.uniform(1, 9))
    with pytest.raises(UserError, match=words):
        model(torch.zeros(2, 9, dtype=torch.long), Context())
