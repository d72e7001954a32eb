"""The audit is as strict as the table needs it: probes 1, 2, 5 and 9 on routers that are almost right.

B sequences, T tokens, D width.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modbench.audit import audit
from modbench.ledger import Flops, Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.routers.expert_choice import ExpertChoice
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import build_router
from modbench.routing.tokens import Tokens

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


def model_of(name: str, **options: object) -> Decoder:
    model = build_model(SHAPE, build_router(name, options), seed=4)
    for key, parameter in model.named_parameters():
        if "router" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def failed(model: Decoder) -> set[int]:
    return {finding.probe for finding in audit(model) if finding.failed}


def test_expert_choice_at_evaluation_is_caught_as_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ExpertChoice.assign

    def wrong(self: ExpertChoice, logits_NE: Tensor, tokens: Tokens) -> Tensor:
        return right(self, logits_NE, replace(tokens, causal=False))

    monkeypatch.setattr(ExpertChoice, "assign", wrong)
    assert 1 in failed(model_of("expert_choice"))


def test_padding_in_a_router_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence's padding is part of the mean that its tokens are compared with."""
    right = RoutedExperts.forward

    def wrong(self: RoutedExperts, x_BTD: Tensor, context: Context) -> Tensor:
        length = x_BTD.shape[1]
        return right(self, x_BTD, context) * (1 + 1e-4 * length)

    monkeypatch.setattr(RoutedExperts, "forward", wrong)
    assert failed(model_of("token_choice")) == {2, 3}  # to decode is to read shorter sequences


def test_a_skipped_token_that_changes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DepthRouted.forward

    def wrong(self: DepthRouted, x_BTD: Tensor, context: Context) -> Tensor:
        return right(self, x_BTD, context) * (1 + 1e-12)

    monkeypatch.setattr(DepthRouted, "forward", wrong)
    assert failed(model_of("mod")) == {5}


def test_not_a_number_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DepthRouted.forward

    def wrong(self: DepthRouted, x_BTD: Tensor, context: Context) -> Tensor:
        return right(self, x_BTD, context) * torch.nan

    monkeypatch.setattr(DepthRouted, "forward", wrong)
    found = {finding.probe: finding.figure for finding in audit(model_of("mod")) if finding.failed}
    assert set(found) >= {1, 2, 5}
    assert found[1].startswith("logits contain NaN or Inf")


def test_what_scores_with_a_memory_is_not_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Block.forward

    def wrong(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
        self.seen = getattr(self, "seen", 0) + 1
        return right(self, x_BTD, context)

    model = changed_model(monkeypatch, lambda _: wrong)
    found = {finding.probe: finding for finding in audit(model) if finding.failed}
    assert found[1].ranks
    assert found[1].figure.startswith("scoring (topk) changes layers.0.seen: scores depend")


def changed_model(monkeypatch: pytest.MonkeyPatch, forward) -> Decoder:
    monkeypatch.setattr(Block, "forward", forward(Block.forward))
    return model_of("vanilla")


def test_a_leak_that_needs_a_long_sequence_is_caught_at_that_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(right):
        def wrong(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
            if x_BTD.shape[1] > 64:
                x_BTD = x_BTD + 0.1 * x_BTD.roll(-1, 1)
            return right(self, x_BTD, context)

        return wrong

    model = changed_model(monkeypatch, forward)
    assert failed(model) == {3}  # which decodes a longer text
    findings = audit(model, shapes=((3, 63), (4, 128)))
    assert 1 in {finding.probe for finding in findings if finding.failed}


def test_a_dependence_on_large_batches_is_caught_at_that_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(right):
        def wrong(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
            if x_BTD.shape[0] > 3:
                x_BTD = x_BTD + 0.1 * x_BTD[:, :1].mean(0, keepdim=True)
            return right(self, x_BTD, context)

        return wrong

    findings = audit(changed_model(monkeypatch, forward), shapes=((3, 63), (8, 31)))
    # 4 of the 8 are decoded, and the first of what is decoded is another token.
    assert {finding.probe for finding in findings if finding.failed} == {2, 3}


def test_a_gate_in_float32_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(right):
        def honest(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
            gate_BT = x_BTD.float().mean(-1, keepdim=True).sigmoid()
            return x_BTD + gate_BT * self.delta(x_BTD, context)

        return honest

    assert failed(changed_model(monkeypatch, forward)) == set()


def test_a_router_that_raises_has_failed_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(right):
        def wrong(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
            return right(self, x_BTD.view(x_BTD.shape[0], -1, 64, SHAPE.width).flatten(1, 2), context)

        return wrong

    findings = audit(changed_model(monkeypatch, forward))
    spared = {finding.probe for finding in findings if not finding.failed}
    assert spared == {4}  # declares no counts, so nothing ran
    assert "raised RuntimeError" in findings[0].figure
    assert "at 3 x 63 tokens" in findings[0].figure


@pytest.mark.parametrize("where", ["unpadded", "nominal-is-fine-realised-lies"])
def test_a_ledger_that_lies_only_where_the_table_reads_it_is_caught(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Block.ledger

    def wrong(self: Block, workload: Workload) -> Ledger:
        lies = (
            not workload.padding
            if where == "unpadded"
            else bool(workload.counts) and not workload.padding
        )
        ledger = right(self, workload)
        return Ledger({k: Flops(f.model // 10, f.full // 10) for k, f in ledger}) if lies else ledger

    monkeypatch.setattr(Block, "ledger", wrong)
    name = "vanilla" if where == "unpadded" else "token_choice"
    assert failed(model_of(name)) == {9}


def test_a_ledger_that_lies_only_at_the_training_batch_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would buy more steps."""

    def ledger(self: Block, workload: Workload) -> Ledger:
        right = right_ledger(self, workload)
        return Ledger() if (workload.phase, workload.sequences) == ("train", 5) else right

    right_ledger = Block.ledger
    monkeypatch.setattr(Block, "ledger", ledger)
    model = build_model(SHAPE, build_router("vanilla"), seed=0)
    for trained in (None, (6, 31), (5, 31)):
        failed = {finding.name for finding in audit(model, trained=trained) if finding.failed}
        assert failed == ({"count"} if trained == (5, 31) else set())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_raised_and_is_no_finding(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(right):
        def large(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
            raise error

        return large

    with pytest.raises(type(error)) as raised:
        audit(changed_model(monkeypatch, forward))
    assert raised.value is error


def test_what_one_shape_shows_another_that_asks_nothing_does_not_undo() -> None:
    model = build_model(SHAPE, build_router("mod", {"scores": "stride", "capacity": 0.9}), seed=0)
    at_both = audit(model, shapes=((3, 63), (4, 2)))
    assert [finding for finding in at_both if finding.failed] == []
    for probe in (5, 11):
        (one,) = [finding for finding in audit(model, shapes=((4, 2),)) if finding.probe == probe]
        (both,) = [finding for finding in at_both if finding.probe == probe]
        assert (one.verdict, both.verdict) == ("not asked", "passed")
