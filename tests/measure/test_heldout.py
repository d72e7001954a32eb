"""Held-out loss. B sequences, T tokens, V vocabulary, W windows."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from modbench.ledger import Ledger, Workload
from modbench.measure.loss import heldout_loss, heldout_windows, unigram_loss
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router


class Fixed(nn.Module):
    """Gives token v the logit log(v + 1), whatever came before."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, tokens_BT: torch.Tensor, context: Context) -> torch.Tensor:
        return torch.arange(1, 5).log().expand(*tokens_BT.shape, 4)

    def losses(
        self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor, context: Context
    ) -> torch.Tensor:
        logs_BTV = self(tokens_BT, context).log_softmax(-1)
        return -logs_BTV.gather(2, targets_BT[..., None]).squeeze(-1)

    def ledger(self, load: Workload) -> Ledger:
        return Ledger()


def test_nats_and_bits_are_those_worked_out_by_hand() -> None:
    windows_WT = np.array([[0, 1, 3], [2, 0, 0]])
    found = heldout_loss(Fixed(), windows_WT, np.array([0, 1, 2, 3]), selection="causal")
    nats = -sum(math.log((v + 1) / 10) for v in (1, 3, 0, 0))
    assert found.nats_per_token == pytest.approx(nats / 4)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / (1 + 3))
    assert found.tokens == 4


def test_a_model_that_writes_over_its_tokens_is_scored_on_the_text() -> None:
    class Writes(Fixed):
        def forward(self, tokens_BT: torch.Tensor, context: Context) -> torch.Tensor:
            return super().forward(tokens_BT.fill_(3), context)

    windows_WT = np.array([[0, 1, 3], [2, 0, 0]])
    fair, found = (
        heldout_loss(model, windows_WT.copy(), np.arange(4), selection="causal")
        for model in (Fixed(), Writes())
    )
    assert found.nats_per_token == fair.nats_per_token


def test_windows_cover_the_text_evenly_without_overlap() -> None:
    windows_WT = heldout_windows(np.arange(101), sequence=10, tokens=35)
    assert windows_WT.shape == (4, 11)
    assert windows_WT[:, 0].tolist() == [0, 20, 50, 70]
    assert heldout_windows(np.arange(101), sequence=10, tokens=10**6).shape == (10, 11)


def test_unigram_loss_is_the_cross_entropy_of_the_training_frequencies() -> None:
    train_N = np.array([0, 0, 0, 1])
    windows_WT = np.array([[1, 0, 1]])
    expected = -(math.log(4 / 6) + math.log(2 / 6)) / 2
    assert unigram_loss(train_N, windows_WT, 2) == pytest.approx(expected)


@pytest.mark.parametrize("router", ["mod", "mode_staged"])
def test_realised_flops_count_what_was_selected_and_dispatched_what_was_padded(router: str) -> None:
    """A routed block computes padded slots; experts and their router do not."""
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
    model = build_model(shape, build_router(router, {"capacity": 0.5}), seed=1)
    windows_WT = np.random.default_rng(0).integers(97, size=(4, 33))
    found = heldout_loss(model, windows_WT, np.ones(97), selection="causal")
    context = Context(selection="causal")
    model(torch.from_numpy(windows_WT[:, :-1]), context)
    counts = context.trace.counts
    lengths = counts[1, "depth"]
    assert 0 < min(lengths) < max(lengths)
    as_selected, as_padded = (
        model.ledger(Workload(lengths=(32,) * 4, counts={**counts, (1, "depth"): entered})).total() / 128
        for entered in (lengths, (max(lengths),) * 4)
    )
    assert as_selected < as_padded
    assert found.realised_flops_per_token == as_selected
    scored = 0
    if router == "mode_staged":
        slots, experts = 4 * max(lengths) - sum(lengths), 8
        scored = slots * 2 * shape.width * experts
    assert found.dispatched_flops_per_token == as_padded - scored / 128


def test_top_k_evaluation_differs_from_causal_only_by_the_rule() -> None:
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
    windows_WT = np.random.default_rng(0).integers(97, size=(4, 33))
    for name, differs in (("vanilla", False), ("token_choice", False), ("mod", True)):
        model = build_model(shape, build_router(name), seed=1)
        causal, leaky = (
            heldout_loss(model, windows_WT, np.ones(97), selection=rule).nats_per_token
            for rule in ("causal", "topk")
        )
        assert (causal != leaky) == differs
