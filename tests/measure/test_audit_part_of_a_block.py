"""Schemes that route a part of a block, attention alone or the MLP alone, and run the rest for all: no
token skips such a layer, and no probe finds fault with it for that.

B sequences, T tokens, D model width; R sequences that send any tokens, K the most that one sends.
"""

from dataclasses import replace

import mutants
import pytest
import torch
from mutants import Depth, Right
from torch import Tensor

from modbench.flops.component import component
from modbench.flops.ledger import Ledger, Load, matmul
from modbench.measure.audit import Finding, audit
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import build_model
from modbench.model.initial import normal_
from modbench.model.scores import known, score
from modbench.model.selected import Selected, alike

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


class Attends(Right):
    """Attention for the tokens that score above 0, among themselves; the MLP for all."""

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        del self.predictor

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"router {self.layer}")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", self.layer):
            scores_BT = score(x_BTD, self.router).squeeze(-1)
        attending_BT, real_BT = scores_BT >= 0, context.real(x_BTD)
        if real_BT is not None:
            attending_BT = attending_BT & real_BT
        counts = known(attending_BT.sum(1), context.lengths(x_BTD))
        context.trace.count(self.layer, "attending", counts)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        middle_BTD = x_BTD
        for some in alike(counts):
            inner = Selected(x_BTD, attending_BT, some, context, layer=self.layer)
            attended_RKD = self.attended(inner)
            gate_RK = inner.gather(scores_BT).sigmoid()
            middle_BTD = inner.add_to(middle_BTD, attended_RKD * gate_RK[..., None])
        normed_BTD = self.block.feed_forward_norm(middle_BTD)
        return middle_BTD + self.block.feed_forward(normed_BTD, context)  # type: ignore[no-any-return]

    def attended(self, inner: Selected) -> Tensor:
        return self.block.attention(self.block.attention_norm(inner.x_RKD), inner.context)  # type: ignore[no-any-return]

    def ledger(self, load: Load) -> Ledger:
        lengths = load.counts.get((self.layer, "attending"), load.lengths)
        past = load.counts.get((self.layer, "past"), load.past)
        # Where nobody attends, no gradient comes back to the router.
        scored = load if any(lengths) else replace(load, phase="forward")
        router = matmul(scored, self.layer, "router", rows=load.slots, inner=self.model.width, columns=1)
        attention = self.block.attention
        return Ledger.sum(
            [
                router,
                self.block.feed_forward.ledger(load),
                *(attention.ledger(load.routed(some, past)) for some in alike(lengths)),
            ]
        )

    def promised(self, load: Load) -> dict[tuple[int, str], tuple[int, ...]]:
        return {}


class AttendsToItselfInDecoding(Attends):
    """A decoded token does not see those that attended before it."""

    def attended(self, inner: Selected) -> Tensor:
        attended_RKD = super().attended(inner)
        return torch.zeros_like(attended_RKD) if inner.x_RKD.shape[1] == 1 else attended_RKD


def verdicts(layer: type[Right], monkeypatch: pytest.MonkeyPatch) -> dict[int, Finding]:
    monkeypatch.setitem(mutants.MUTANTS, "case", layer)
    return {f.probe: f for f in audit(build_model(SHAPE, Depth(bug="case"), seed=4))}


def test_attention_that_a_part_of_the_tokens_enters_keeps_their_keys_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = verdicts(Attends, monkeypatch)
    assert [finding for finding in found.values() if finding.failed] == []
    assert found[3].verdict == "passed"
    assert found[5].verdict == "not asked"


def test_attention_that_decodes_otherwise_fails_by_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = verdicts(AttendsToItselfInDecoding, monkeypatch)[3]
    assert finding.failed
    assert "one by one differ by" in finding.figure
