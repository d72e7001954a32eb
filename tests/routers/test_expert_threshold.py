"""Expert Threshold routing against a plain loop, its thresholds, and what every scheme must show.

B sequences, T tokens, D width, E experts.
"""

import math

import layer_checks as checks
import pytest
import torch
import torch.nn.functional as F
from against_loop import equals_its_loop, model_of
from torch import Tensor

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import build_router

OPTIONS: dict[str, dict] = {
    "default": {},
    "softmax": {"gate": "softmax", "experts": 5, "capacity": 1.0, "expert_width": 7},
    "everyone": {"experts": 2, "capacity": 2.0},
}


@pytest.fixture(params=checks.full_except(OPTIONS, "default"))
def scheme(request: pytest.FixtureRequest, shape: ModelConfig) -> checks.Scheme:
    return checks.Scheme("expert_threshold", OPTIONS[request.param], shape)


def part_of(name: str, shape: ModelConfig) -> RoutedExperts:
    part = model_of("expert_threshold", OPTIONS[name], shape).layers[0].feed_forward
    assert isinstance(part, RoutedExperts)
    part.router.threshold.value.copy_(torch.linspace(-1, 1, part.options.experts))
    return part


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_plain_loop(name: str, rule: str, shape: ModelConfig) -> None:
    equals_its_loop(part_of(name, shape), (17, 63, 1), rule)


def test_thresholds_follow_the_kth_highest_of_real_tokens_in_training_only(shape: ModelConfig) -> None:
    part = part_of("default", shape)
    x_BTD = torch.randn(2, 16, shape.width, dtype=torch.float64)
    before_E = part.router.threshold.value.clone()
    part.eval()(x_BTD, Context())
    part.train()(x_BTD, Context(selection="causal"))
    assert torch.equal(part.router.threshold.value, before_E)
    for step in range(1, 4):
        part(x_BTD, Context(lengths_B=torch.tensor([16, 5])))
        logits_NE = torch.cat((x_BTD[0], x_BTD[1, :5])) @ part.router.weight.T
        k = math.ceil(21 * 2 / 8)
        kth_E = torch.stack([logits_E.sort(descending=True).values[k - 1] for logits_E in logits_NE.T])
        torch.testing.assert_close(part.router.threshold.value, kth_E)
        assert part.router.threshold.updates == step


def test_a_pass_routes_by_the_thresholds_that_it_found(shape: ModelConfig) -> None:
    """The first training pass moves them a long way; what it gives is what the causal rule gave."""
    part = part_of("default", shape)
    x_BTD = torch.randn(2, 16, shape.width, dtype=torch.float64)
    causal_BTD = part(x_BTD, Context(selection="causal"))
    before_E = part.router.threshold.value.clone()
    assert torch.equal(part(x_BTD, Context()), causal_BTD)
    assert not torch.equal(part.router.threshold.value, before_E)


def test_the_load_comes_to_the_capacity_in_expectation(shape: ModelConfig) -> None:
    model = build_model(shape, build_router("expert_threshold")).train()
    part = model.layers[0].feed_forward

    def fanout(part: RoutedExperts, sequences: int) -> Tensor:
        context = Context()
        part(F.rms_norm(torch.randn(sequences, 64, shape.width) + 0.5, (shape.width,)), context)
        return context.trace.tensors[0, "load"] / (sequences * 64 / part.options.experts)

    assert 1.0 < fanout(part, 8).mean() < 3.0  # the start is near 2 before anything was seen
    for _ in range(30):
        fanout(part, 8)
    torch.testing.assert_close(fanout(part.eval(), 64), torch.full((8,), 2.0), rtol=0.1, atol=0)


def test_a_token_exactly_at_the_threshold_is_in(shape: ModelConfig) -> None:
    part = part_of("default", shape)
    torch.nn.init.zeros_(part.router.weight)
    part.router.threshold.value.zero_()
    context = Context()
    part(torch.randn(1, 5, shape.width, dtype=torch.float64), context)
    assert context.trace.counts[0, "experts"] == (5 * 8,)


class TestEveryScheme(checks.EveryScheme):
    """On each of the schemes above."""
