"""Probe 8 on layers whose scorer is a module named ``router``.

B sequences, T tokens, S slots, D model width, E experts.
"""

import pytest
import torch
from mutants import learning
from torch import Tensor, nn

from modbench.audit.learning import NO_GATE
from modbench.errors import several
from modbench.ledger import Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.mlp import FeedForward
from modbench.routing.expert_bank import ExpertBank, dispatched
from modbench.routing.scorer import LinearScorer

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
EXPERTS = 4
ROUTER = "layers.1.feed_forward.router"


class Scored(FeedForward):
    """The best of four experts, weighted by its sigmoid."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.bank = ExpertBank(model, layer, experts=EXPERTS, width=16)
        self.router = self.scorer()

    def scorer(self) -> nn.Module:
        return LinearScorer(self.model.width, EXPERTS, stream=f"scored {self.layer}")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_SD = x_BTD.flatten(0, 1)
        scores_SE = self.router(x_SD)
        chosen_SE = torch.zeros_like(scores_SE, dtype=torch.bool)
        chosen_SE.scatter_(1, scores_SE.argmax(1, keepdim=True), True)
        load_E = chosen_SE.sum(0)
        context.trace.show(self.layer, "load", load_E)
        real_BT = context.real(x_BTD)
        real_S = torch.ones(len(x_SD), dtype=torch.bool) if real_BT is None else real_BT.flatten()
        loss = self.loss(x_SD[real_S], scores_SE[real_S])
        if context.selection == "topk" and loss is not None:
            context.trace.loss(self.layer, "auxiliary", loss)
        gates_SE = self.gates(scores_SE, chosen_SE)
        return dispatched(self.bank, x_BTD, gates_SE, chosen_SE, load_E.tolist())

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        return scores_SE.sigmoid()

    def loss(self, x_SD: Tensor, scores_SE: Tensor) -> Tensor | None:
        return None

    def ledger(self, workload: Workload) -> Ledger:
        return Ledger()


class ScoredByAnMLP(Scored):
    def scorer(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.model.width, 8), nn.Tanh(), nn.Linear(8, EXPERTS, bias=False)
        )


class OfTwoParts(nn.Module):
    """Scores by one of two linear maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.used, self.other = (nn.Linear(width, EXPERTS, bias=False) for _ in range(2))

    def forward(self, x_SD: Tensor) -> Tensor:
        return self.used(x_SD)  # type: ignore[no-any-return]


class PartlyUntaught(Scored):
    def scorer(self) -> nn.Module:
        return OfTwoParts(self.model.width)


class TaughtByALoss(PartlyUntaught):
    """An auxiliary loss alone reaches the other map, and a parameter of any name."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__(model, layer)
        self.anything = nn.Linear(model.width, 1)

    def loss(self, x_SD: Tensor, scores_SE: Tensor) -> Tensor | None:
        return (self.router.other(x_SD).square().mean() + self.anything(x_SD).square().mean()) / 100


class Renormalised(Scored):
    """The gate of one expert divided by itself: always 1."""

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        gates_SE = scores_SE.softmax(1) * chosen_SE
        return gates_SE / gates_SE.sum(1, keepdim=True)


class RenormalisedAndBalanced(Renormalised):
    def loss(self, x_SD: Tensor, scores_SE: Tensor) -> Tensor | None:
        return scores_SE.softmax(1).square().mean()


@pytest.mark.parametrize(("kind", "parameters"), [(Scored, 1), (ScoredByAnMLP, 3), (TaughtByALoss, 1)])
def test_a_scorer_that_learns_passes(
    kind: type[Scored], parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = True, f"cross-entropy reaches {several(parameters, 'router parameter')}"
    assert learning(kind, SHAPE, monkeypatch) == outcome


@pytest.mark.parametrize("kind", [Renormalised, RenormalisedAndBalanced])
def test_a_scorer_that_no_gate_depends_on_is_named_with_what_to_do(
    kind: type[Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = False, f"cross-entropy does not reach {ROUTER}{NO_GATE}"
    assert learning(kind, SHAPE, monkeypatch) == outcome


def test_a_part_of_a_scorer_that_no_loss_reaches_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = False, f"no loss reaches {ROUTER}.other.weight"
    assert learning(PartlyUntaught, SHAPE, monkeypatch) == outcome
