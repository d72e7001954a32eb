"""Mutants of the built-in depth routing that are wrong in one place or one mode alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from modbench.measure.audit import audit
from modbench.measure.audit.command import warmed
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.routers.mod import DepthOptions, DepthRouted
from modbench.routing import registry
from modbench.routing.topk import capacity_tokens

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


class PeeksLate(DepthRouted):
    """Who enters of tokens 100 to 119 is decided by tokens 101 to 120."""

    def _scores(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        scores_BT, causal_BT = super()._scores(x_BTD, context)
        if context.selection == "causal" and x_BTD.shape[1] > 120:
            causal_BT = causal_BT.clone()
            causal_BT[:, 100:120] = causal_BT[:, 101:121].clone()
        return scores_BT, causal_BT


class ComputesAllInTraining(DepthRouted):
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.block.feed_forward(x_BTD, context)
        return super().forward(x_BTD, context)


class ThresholdOfTheFirst(DepthRouted):
    def _topk(self, scores_BT: Tensor, *rest: Any) -> tuple[Tensor, list[int]]:
        found = super()._topk(scores_BT, *rest)
        if self.training and self.threshold is not None:
            self.threshold.update(scores_BT.detach()[0].mean())
        return found


class ThresholdOfPadding(DepthRouted):
    def _topk(self, scores_BT: Tensor, *rest: Any) -> tuple[Tensor, list[int]]:
        found = super()._topk(scores_BT, *rest)
        if self.training and self.threshold is not None:
            self.threshold.update(scores_BT.detach().mean())
        return found


def schedule(capacity: float) -> Callable[[bool], float]:
    steps = 0

    def now(passed: bool) -> float:
        nonlocal steps
        steps += passed
        return 1.0 if steps <= 100 else capacity

    return now


class ScheduleInAClosure(DepthRouted):
    def __init__(self, options: DepthOptions, *rest: Any) -> None:
        super().__init__(options, *rest)
        self.now = schedule(options.capacity)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        self.now(self.training)
        return super().forward(x_BTD, context)

    def _share(self, tokens: int) -> int:
        return capacity_tokens(self.now(False), tokens)


KINDS = {
    kind.__name__: kind
    for kind in (
        DepthRouted,
        PeeksLate,
        ComputesAllInTraining,
        ThresholdOfTheFirst,
        ThresholdOfPadding,
        ScheduleInAClosure,
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
        ("DepthRouted", "predictor", set()),
        ("DepthRouted", "ema_threshold", set()),
        ("PeeksLate", "ema_threshold", {3}),
        ("ComputesAllInTraining", "predictor", {9, 11}),
        ("ThresholdOfTheFirst", "ema_threshold", {8}),
        ("ThresholdOfPadding", "ema_threshold", {8}),
        ("ScheduleInAClosure", "predictor", {10}),
    ],
)
def test_each_is_met_by_its_probe(
    kind: str, causal: str, probes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._registered, "late", Late)
    model = warmed(SHAPE, "late", {"kind": kind, "causal": causal, "capacity": 0.4}, 0, 128)
    failed = {
        finding.probe: finding.figure
        for finding in audit(model, shapes=((3, 63), (2, 128)))
        if finding.failed
    }
    assert probes <= set(failed), failed
    assert probes or not failed, failed
