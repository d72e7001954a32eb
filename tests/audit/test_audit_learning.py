"""Probe 8 requires a router gradient that is finite, not 0, and of a linear gate's scale.

R sequences with selected tokens, K the most of one sequence.
"""

import mutants
import pytest
import torch
from mutants import Depth, Right
from torch import Tensor, nn

from modbench.audit.finding import Outcome, Subject
from modbench.audit.learning import gradient
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model


def learning(layer: type[Right], monkeypatch: pytest.MonkeyPatch, layers: int = 2) -> Outcome:
    monkeypatch.setitem(mutants.MUTANTS, "case", layer)
    shape = ModelConfig(vocabulary=97, width=32, layers=layers, heads=4, mlp_width=64)
    subject = Subject(build_model(shape, Depth(bug="case"), seed=4))
    return gradient(subject, subject.tokens(3, 63))


class OfZeros(Right):
    def gate(self, scores_RK: Tensor) -> Tensor:
        return scores_RK.detach() + 0 * scores_RK


class OfNoNumbers(Right):
    def gate(self, scores_RK: Tensor) -> Tensor:
        return scores_RK + (scores_RK - scores_RK).sqrt()


@pytest.mark.parametrize("layer", [OfZeros, OfNoNumbers])
def test_a_gradient_of_zeros_or_of_no_numbers_reaches_nothing(
    layer: type[Right], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert learning(layer, monkeypatch) == (False, "cross-entropy does not reach layers.1.router")


class WeakInOneLayer(Right):
    def gate(self, scores_RK: Tensor) -> Tensor:
        if self.layer == 1:
            return super().gate(scores_RK)
        return scores_RK.detach() + 1e-3 * (scores_RK - scores_RK.detach())


def test_one_of_several_routers_with_a_weak_gradient_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learning(WeakInOneLayer, monkeypatch, layers=4)
    assert found == (False, "the router's gradient is 1.0e-03 of a linear gate's")
    assert learning(WeakInOneLayer, monkeypatch)[0] is True  # without the other


class WithAFrozenPredictor(Right):
    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        frozen = torch.zeros(1, model.width)
        self.predictor_before = nn.Parameter(frozen, requires_grad=False)


class OfZeroWeights(Right):
    """Router and predictor start at 0, and are no copies of each other."""

    def initialise(self, seed: int) -> None:
        nn.init.zeros_(self.router)
        nn.init.zeros_(self.predictor)


@pytest.mark.parametrize("layer", [WithAFrozenPredictor, OfZeroWeights])
def test_what_is_not_trained_needs_no_gradient_and_zeros_are_no_copies(
    layer: type[Right], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, figure = learning(layer, monkeypatch)
    assert passed is True, figure


class WithAModuleOfTorchs(Right):
    """A predictor that nothing teaches."""

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        self.predictor_of_more = nn.Linear(model.width, 1, bias=False)


def test_a_predictor_that_is_a_module_of_pytorchs_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learning(WithAModuleOfTorchs, monkeypatch)
    assert found == (False, "no loss reaches layers.1.predictor_of_more.weight")
