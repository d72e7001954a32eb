"""Schemes that route a part of a block (attention or MLP) and run the rest for all: no token skips
such a layer, and no probe fails because of that.

B sequences, T tokens, D model width; R sequences with selected tokens, K the most of one sequence.
"""

import re
from dataclasses import replace

import mutants
import pytest
import torch
from mutants import Depth, Right, learning
from torch import Tensor, nn

from modbench.audit import Finding, audit
from modbench.audit.finding import Subject
from modbench.audit.learning import gradient
from modbench.ledger import Ledger, Workload, component, matmul
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.mlp import MLP, FeedForward
from modbench.routing.build import build_model
from modbench.routing.expert_bank import ExpertBank, dispatched
from modbench.routing.gathered_tokens import GatheredTokens, group_equal_sizes
from modbench.routing.registry import build_router
from modbench.routing.topk import counts_to_host, score

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
        counts = counts_to_host(attending_BT.sum(1), context.lengths(x_BTD))
        context.trace.count(self.layer, "attending", counts)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        middle_BTD = x_BTD
        for some in group_equal_sizes(counts):
            inner = GatheredTokens(x_BTD, attending_BT, some, context, layer=self.layer)
            attended_RKD = self.attended(inner)
            gate_RK = inner.gather(scores_BT).sigmoid()
            middle_BTD = inner.add_to(middle_BTD, attended_RKD * gate_RK[..., None])
        normed_BTD = self.block.feed_forward_norm(middle_BTD)
        return middle_BTD + self.block.feed_forward(normed_BTD, context)  # type: ignore[no-any-return]

    def attended(self, inner: GatheredTokens) -> Tensor:
        return self.block.attention(self.block.attention_norm(inner.x_RKD), inner.context)  # type: ignore[no-any-return]

    def ledger(self, workload: Workload) -> Ledger:
        lengths = workload.counts.get((self.layer, "attending"), workload.lengths)
        past = workload.counts.get((self.layer, "past"), workload.past)
        # Without attending tokens the router gets no gradient.
        scored = workload if any(lengths) else replace(workload, phase="forward")
        router = matmul(
            scored, self.layer, "router", rows=workload.slots, inner=self.model.width, columns=1
        )
        attention = self.block.attention
        return Ledger.sum(
            [
                router,
                self.block.feed_forward.ledger(workload),
                *(attention.ledger(workload.routed(some, past)) for some in group_equal_sizes(lengths)),
            ]
        )

    def nominal_counts(self, workload: Workload) -> dict[tuple[int, str], tuple[int, ...]]:
        return {}


class AttendsToItselfInDecoding(Attends):
    """A decoded token does not see those that attended before it."""

    def attended(self, inner: GatheredTokens) -> Tensor:
        attended_RKD = super().attended(inner)
        return torch.zeros_like(attended_RKD) if inner.x_RKD.shape[1] == 1 else attended_RKD


def verdicts(layer: type[Right], monkeypatch: pytest.MonkeyPatch) -> dict[int, Finding]:
    monkeypatch.setitem(mutants.MUTANTS, "case", layer)
    return {f.probe: f for f in audit(build_model(SHAPE, Depth(bug="case"), seed=4))}


def test_routed_attention_caches_keys_of_routed_tokens_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = verdicts(Attends, monkeypatch)
    assert [finding for finding in found.values() if finding.failed] == []
    assert found[3].verdict == "passed"
    assert found[5].verdict == "not asked"


def test_attention_that_decodes_differently_fails_by_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = verdicts(AttendsToItselfInDecoding, monkeypatch)[3]
    assert finding.failed
    assert "decoded tokens differ by" in finding.figure


class ShowsWhoAttends(Attends):
    """Shows the attending tokens as selected, though the MLP changes the others, too."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        attending_BT = score(x_BTD, self.router).squeeze(-1) >= 0
        context.trace.show(self.layer, "selected", attending_BT)
        return super().forward(x_BTD, context)


def test_a_partly_routed_block_that_shows_selected_fails_with_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finding = verdicts(ShowsWhoAttends, monkeypatch)[5]
    assert finding.failed
    told = re.match(
        r"(\d+) of (\d+) tokens shown as not selected are changed by their layer; ", finding.figure
    )
    assert told is not None
    assert told[1] == told[2]
    assert "a scheme that routes a part of a block must not show selected" in finding.figure


class Heavy(FeedForward):
    """A light MLP for all tokens, and a heavy one besides for those that score above 0 (as in CoLT5)."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.light = MLP(replace(model, mlp_width=8), layer)
        self.heavy = ExpertBank(model, layer, experts=1, width=model.hidden)
        self.router = nn.Parameter(torch.empty(1, model.width))

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"heavy {self.layer}")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        scores_S1 = score(x_BTD, self.router).view(-1, 1)
        chosen_S1, gates_S1 = scores_S1 >= 0, self.gate(scores_S1)
        heavy_BTD = dispatched(self.heavy, x_BTD, gates_S1, chosen_S1, [int(chosen_S1.sum())])
        return self.light(x_BTD, context) + heavy_BTD  # type: ignore[no-any-return]

    def gate(self, scores_S1: Tensor) -> Tensor:
        return scores_S1.sigmoid()

    def ledger(self, workload: Workload) -> Ledger:
        return Ledger()


class Detached(Heavy):
    def gate(self, scores_S1: Tensor) -> Tensor:
        return scores_S1.detach().sigmoid()


def test_the_router_of_one_heavy_mlp_is_a_router(monkeypatch: pytest.MonkeyPatch) -> None:
    assert learning(Heavy, SHAPE, monkeypatch) == (True, "cross-entropy reaches 1 router parameter")


def test_a_gate_that_keeps_the_gradient_from_the_router_of_one_mlp_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = False, "cross-entropy does not reach layers.1.feed_forward.router"
    assert learning(Detached, SHAPE, monkeypatch) == outcome


def test_a_softmax_over_one_expert_has_nothing_to_choose() -> None:
    options = {"experts": 1, "top_k": 1, "renormalise": False}
    subject = Subject(build_model(SHAPE, build_router("token_choice", options), seed=4))
    outcome = None, "a softmax over one expert has no gradient"
    assert gradient(subject, subject.tokens(3, 63)) == outcome
