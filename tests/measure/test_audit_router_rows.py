"""Probe 8 finds a row of a router's weight whose gradient is lost though its expert receives tokens.

B sequences, T tokens, S slots, D model width, E experts.
"""

import re

import pytest
import torch
from mutants import learning
from torch import Tensor, nn

from modbench.ledger import Ledger, Workload
from modbench.measure.audit.learning import TOKENS
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.mlp import FeedForward
from modbench.routing.expert_bank import ExpertBank, dispatched
from modbench.routing.topk import score

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
EXPERTS, CUT = 4, 1


class Best(FeedForward):
    """The two experts with the highest scores, each weighted by its own sigmoid."""

    top_k = 2

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.bank = ExpertBank(model, layer, experts=EXPERTS, width=16)
        self.router = nn.Parameter(torch.empty(EXPERTS, model.width))

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"best {self.layer}")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        scores_SE = score(x_BTD, self.router).flatten(0, 1)
        chosen_SE = torch.zeros_like(scores_SE, dtype=torch.bool)
        chosen_SE.scatter_(1, self.choice(scores_SE).topk(self.top_k).indices, True)
        real_BT = context.real(x_BTD)
        if real_BT is not None:
            chosen_SE = chosen_SE & real_BT.reshape(-1, 1)
        load_E = chosen_SE.sum(0)
        context.trace.show(self.layer, "load", load_E)
        gates_SE = self.gates(scores_SE, chosen_SE)
        return dispatched(self.bank, x_BTD, gates_SE, chosen_SE, load_E.tolist())

    def choice(self, scores_SE: Tensor) -> Tensor:
        return scores_SE

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        return scores_SE.sigmoid()

    def ledger(self, workload: Workload) -> Ledger:
        return Ledger()


def with_one(gates_SE: Tensor, column_S: Tensor) -> Tensor:
    """``gates_SE`` with another column for the expert `CUT`."""
    return torch.cat([gates_SE[:, :CUT], column_S[:, None], gates_SE[:, CUT + 1 :]], 1)


class CutForOne(Best):
    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        gates_SE = scores_SE.sigmoid()
        return with_one(gates_SE, gates_SE[:, CUT].detach())


class CutForOneOfTheBest(CutForOne):
    top_k = 1


class Renormalised(Best):
    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        gates_SE = scores_SE.sigmoid() * chosen_SE
        return gates_SE / gates_SE.sum(1, keepdim=True).clamp(min=1e-30)


class Softmax(Best):
    top_k = 1

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        return scores_SE.softmax(1)


class NeverChosen(Best):
    """A bias in the choice only."""

    def choice(self, scores_SE: Tensor) -> Tensor:
        return with_one(scores_SE, scores_SE[:, CUT] - 1e3)


class ChosenInTurn(Best):
    """Chosen by position, whatever the scores."""

    def choice(self, scores_SE: Tensor) -> Tensor:
        place_S1 = torch.arange(len(scores_SE), device=scores_SE.device)[:, None]
        return -((place_S1 - torch.arange(EXPERTS, device=scores_SE.device)) % EXPERTS).double()


class Noisy(Best):
    """With random noise in the choice."""

    def choice(self, scores_SE: Tensor) -> Tensor:
        return scores_SE + 0.1 * torch.randn_like(scores_SE)


class WithABias(Best):
    """A router's, of another shape."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__(model, layer)
        self.router_bias = nn.Parameter(torch.zeros(EXPERTS))

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        return super().gates(scores_SE + self.router_bias, chosen_SE)


class WithAFrozenOne(Best):
    """A router of the same shape that is not trained."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__(model, layer)
        frozen_ED = torch.zeros(EXPERTS, model.width)
        self.router_frozen = nn.Parameter(frozen_ED, requires_grad=False)


@pytest.mark.parametrize("kind", [CutForOne, CutForOneOfTheBest])
def test_a_gradient_detached_for_one_expert_is_named(
    kind: type[Best], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, figure = learning(kind, SHAPE, monkeypatch)
    assert passed is False
    place = rf"row {CUT} of layers\.1\.feed_forward\.router, to whose expert (\d+) tokens go"
    found = re.fullmatch(f"cross-entropy does not reach {place}", figure)
    assert found, figure
    assert 0 < int(found[1]) < 3 * TOKENS


@pytest.mark.parametrize(
    "kind",
    [
        Best,
        Renormalised,
        Softmax,
        NeverChosen,
        ChosenInTurn,
        Noisy,
        WithAFrozenOne,
    ],
)
def test_rows_of_experts_without_tokens_need_no_gradient(
    kind: type[Best], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert learning(kind, SHAPE, monkeypatch) == (True, "cross-entropy reaches 1 router parameters")


def test_parameters_of_other_shapes_are_not_tested_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert learning(WithABias, SHAPE, monkeypatch) == (True, "cross-entropy reaches 2 router parameters")
