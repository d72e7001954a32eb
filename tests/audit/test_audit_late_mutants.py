"""Mutants of the built-in depth routing that are wrong at one position or in one mode only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from modbench.audit import findings
from modbench.audit.warmed import warmed
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.routers.mod import DepthOptions
from modbench.routing import registry
from modbench.routing.depth_router import DepthRouted

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


class PeeksLate(DepthRouted):
    """Tokens 100 to 119 are selected by the predictions for tokens 101 to 120."""

    def _causal_scores(self, x_BTD: Tensor, scores_BT: Tensor) -> Tensor:
        causal_BT = super()._causal_scores(x_BTD, scores_BT)
        if not self.training and x_BTD.shape[1] > 120:
            causal_BT = causal_BT.clone()
            causal_BT[:, 100:120] = causal_BT[:, 101:121].clone()
        return causal_BT


class ComputesAllInTraining(DepthRouted):
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.block.feed_forward(x_BTD, context)
        return super().forward(x_BTD, context)


class ThresholdOfTheFirst(DepthRouted):
    def _topk(self, x_BTD: Tensor, scores_BT: Tensor, *rest: Any) -> tuple[Tensor, Sequence[int]]:
        found = super()._topk(x_BTD, scores_BT, *rest)
        if self.training and self.threshold is not None:
            self.threshold.update(scores_BT.detach()[0].mean())
        return found


class ThresholdOfPadding(DepthRouted):
    def _topk(self, x_BTD: Tensor, scores_BT: Tensor, *rest: Any) -> tuple[Tensor, Sequence[int]]:
        found = super()._topk(x_BTD, scores_BT, *rest)
        if self.training and self.threshold is not None:
            self.threshold.update(scores_BT.detach().mean())
        return found


KINDS = {
    kind.__name__: kind
    for kind in (
        DepthRouted,
        PeeksLate,
        ComputesAllInTraining,
        ThresholdOfTheFirst,
        ThresholdOfPadding,
    )
}


@dataclass(frozen=True, kw_only=True)
class Late(DepthOptions):
    name = "late"
    kind: str = "DepthRouted"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        block = Block(model, layer)
        return KINDS[self.kind](self, model, layer, block) if layer % 2 else block


@pytest.mark.parametrize(
    ("kind", "causal", "probes"),
    [
        ("DepthRouted", "ema_threshold", set()),
        ("PeeksLate", "ema_threshold", {3}),
        ("ComputesAllInTraining", "predictor", {9, 11}),
        ("ThresholdOfTheFirst", "ema_threshold", {8}),
        ("ThresholdOfPadding", "ema_threshold", {8}),
    ],
)
def test_each_is_caught_by_its_probe(
    kind: str, causal: str, probes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._registered, "late", Late)
    model = warmed(SHAPE, "late", {"kind": kind, "causal": causal, "capacity": 0.4}, 0, 128)
    only = probes or range(1, 12)
    found = findings(model, shapes=((3, 63), (2, 128)), only=only)
    assert {finding.probe for finding in found if finding.failed} == probes
