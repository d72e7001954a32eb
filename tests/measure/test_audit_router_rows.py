"""Probe 8 asks a router's rows, too: a gate that keeps the gradient from one expert alone is named, and
no scheme fails whose loss does not hang on a row without a gradient.

B sequences, T tokens, S slots, D model width, E experts.
"""

import re
from collections.abc import Callable

import pytest
import torch
from mutants import learning
from torch import Tensor, nn

from modbench.ledger import Ledger, Workload
from modbench.measure.audit import router_rows
from modbench.measure.audit.learning import TOKENS
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.mlp import FeedForward
from modbench.routing.build import build_model
from modbench.routing.expert_bank import ExpertBank, dispatched
from modbench.routing.registry import build_router
from modbench.routing.topk import score

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
EXPERTS, CUT = 4, 1


class Best(FeedForward):
    """The two experts that score highest, each weighted by its own sigmoid."""

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


class CutAfterOneThatDoesNothing(CutForOne):
    """The first row without a gradient is not the one at fault."""

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        gates_SE = super().gates(scores_SE, chosen_SE)
        return torch.cat([0 * gates_SE[:, :CUT], gates_SE[:, CUT:]], 1)


class Renormalised(Best):
    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        gates_SE = scores_SE.sigmoid() * chosen_SE
        return gates_SE / gates_SE.sum(1, keepdim=True).clamp(min=1e-30)


class Softmax(Best):
    top_k = 1

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        return scores_SE.softmax(1)


class ChosenByNobody(Best):
    """A bias in the choice alone."""

    def choice(self, scores_SE: Tensor) -> Tensor:
        return with_one(scores_SE, scores_SE[:, CUT] - 1e3)


class ChosenInTurn(Best):
    """By everything but the scores."""

    def choice(self, scores_SE: Tensor) -> Tensor:
        place_S1 = torch.arange(len(scores_SE), device=scores_SE.device)[:, None]
        return -((place_S1 - torch.arange(EXPERTS, device=scores_SE.device)) % EXPERTS).double()


class ConstantGateOfOne(Best):
    """Tokens go to it by its score, and it is weighted by 1."""

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        return with_one(scores_SE.sigmoid(), torch.ones_like(scores_SE[:, CUT]))


class DoesNothing(Best):
    """An expert of zero computation, whatever its gate is."""

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        return with_one(scores_SE.sigmoid(), 0 * scores_SE[:, CUT])


class Noisy(Best):
    """Drawn anew in each pass."""

    def choice(self, scores_SE: Tensor) -> Tensor:
        return scores_SE + 0.1 * torch.randn_like(scores_SE)


class ConstantGateOfOneByLot(ConstantGateOfOne, Noisy): ...


class WithABias(ConstantGateOfOne):
    """A router's, of another shape."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__(model, layer)
        self.router_bias = nn.Parameter(torch.zeros(EXPERTS))

    def gates(self, scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
        return super().gates(scores_SE + self.router_bias, chosen_SE)


class WithAFrozenOne(ConstantGateOfOne):
    """A router of the same shape that is not trained."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__(model, layer)
        frozen_ED = torch.zeros(EXPERTS, model.width)
        self.router_frozen = nn.Parameter(frozen_ED, requires_grad=False)


@pytest.mark.parametrize("kind", [CutForOne, CutForOneOfTheBest, CutAfterOneThatDoesNothing])
def test_a_gradient_that_is_cut_for_one_expert_is_named(
    kind: type[Best], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, figure = learning(kind, SHAPE, monkeypatch)
    assert passed is False
    place = rf"row {CUT} of layers\.1\.feed_forward\.router, to whose expert (\d+) tokens go"
    found = re.fullmatch(f"cross-entropy does not reach {place}", figure)
    assert found, figure
    assert 0 < int(found[1]) < 3 * TOKENS  # its own, and no others'


@pytest.mark.parametrize(
    "kind",
    [
        Best,
        Renormalised,
        Softmax,
        ChosenByNobody,
        ChosenInTurn,
        ConstantGateOfOne,
        DoesNothing,
        Noisy,
        ConstantGateOfOneByLot,
        WithAFrozenOne,
    ],
)
def test_a_row_that_the_loss_does_not_hang_on_needs_no_gradient(
    kind: type[Best], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert learning(kind, SHAPE, monkeypatch) == (True, "cross-entropy reaches 1 router parameters")


def test_parameters_of_other_shapes_are_not_asked_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert learning(WithABias, SHAPE, monkeypatch) == (True, "cross-entropy reaches 2 router parameters")


@pytest.mark.parametrize(
    ("moved", "hangs"),
    [
        (lambda step: step, True),
        (lambda step: -1e-9 * step, True),
        (lambda step: step if abs(step) < 1e-4 else 1.0, True),
        (lambda step: 1e-11 * step, False),
        (lambda step: float(step > 0), False),
        (lambda step: float(step > 0) - float(step < 0), False),
        (abs, False),
        (lambda step: step + 0.3 * abs(step), False),
        (lambda step: 0.0, False),
    ],
    ids=[
        *("slope", "small slope", "slope before a choice tips over", "rounding", "jump"),
        *("jump each way", "kink", "slope and kink", "nothing"),
    ],
)
def test_a_loss_hangs_on_a_row_where_it_has_a_slope(
    moved: Callable[[float], float], hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how much a loss of 1 ``moved`` when row 1 has grown by a ``step`` of itself."""
    first = build_model(SHAPE, build_router("vanilla"), seed=4).double()
    first.embedding.weight.data[1] = 1.0

    def loss(model: nn.Module, tokens_BT: Tensor, context: Context) -> Tensor:
        step = float(model.get_parameter("embedding.weight")[1, 0]) - 1.0
        return torch.tensor(1.0 + moved(step), dtype=torch.float64)

    monkeypatch.setattr(router_rows, "_loss", loss)
    nothing = torch.zeros(1, 1, dtype=torch.long)
    assert router_rows._hangs_on(first, nothing, "embedding.weight", 1, 1.0) is hangs
    assert bool((first.embedding.weight[1] == 1.0).all())  # the model itself is not changed
