"""ReMoE against a plain loop, its coefficient, and what every scheme must show.

B sequences, T tokens, D width, E experts.
"""

import layer_checks as checks
import pytest
import torch
from against_loop import equals_its_loop, model_of

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import build_router

OPTIONS: dict[str, dict] = {
    "default": {},
    "one-of-5": {"experts": 5, "active_experts": 1, "expert_width": 7, "start_coefficient": 0.1},
}


@pytest.fixture(params=checks.full_except(OPTIONS, "default"))
def scheme(request: pytest.FixtureRequest, shape: ModelConfig) -> checks.Scheme:
    return checks.Scheme("relu_routing", OPTIONS[request.param], shape)


def part_of(name: str, shape: ModelConfig) -> RoutedExperts:
    part = model_of("relu_routing", OPTIONS[name], shape).layers[0].feed_forward
    assert isinstance(part, RoutedExperts)
    return part


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_plain_loop(name: str, rule: str, shape: ModelConfig) -> None:
    equals_its_loop(part_of(name, shape), (17, 63, 1), rule)


@pytest.mark.parametrize(
    ("sign", "lengths", "factor"),
    [(1.0, [8, 8], 1.2), (-1.0, [8, 8], 1 / 1.2), (1.0, [8, 3], 1.2)],
    ids=["dense", "sparse", "padded"],
)
def test_the_coefficient_grows_while_too_many_experts_are_at_work(
    sign: float, lengths: list[int], factor: float, shape: ModelConfig
) -> None:
    part = part_of("default", shape)
    part.router.weight.data.fill_(sign)
    x_BTD = torch.rand(2, 8, shape.width, dtype=torch.float64)
    for selection, training in (("topk", False), ("causal", True)):
        part.train(training)(x_BTD, Context(selection=selection))
        assert part.options.coefficient(part.router.exponent).item() == pytest.approx(1e-8)
    context = Context(lengths_B=torch.tensor(lengths))
    part.train()(x_BTD, context)
    assert context.trace.counts[0, "experts"] == (sum(lengths) * 8 if sign > 0 else 0,)
    assert part.options.coefficient(part.router.exponent).item() == pytest.approx(1e-8 * factor)


def test_a_load_that_is_on_target_leaves_the_coefficient_alone(shape: ModelConfig) -> None:
    part = part_of("default", shape)
    part.router.weight.data.fill_(-1.0)
    part.router.weight.data[:2] = 1.0
    part(torch.rand(2, 8, shape.width, dtype=torch.float64), Context())
    assert part.options.coefficient(part.router.exponent).item() == pytest.approx(1e-8)


def test_training_comes_to_the_experts_that_were_asked_for(shape: ModelConfig) -> None:
    options = {"start_coefficient": 1e-3}
    part = build_model(shape, build_router("relu_routing", options)).layers[0].feed_forward.train()
    optimizer = torch.optim.Adam(part.parameters(), lr=1e-2)
    target = torch.randn(shape.width, shape.width) / shape.width**0.5
    active = []
    for _ in range(250):
        x_BTD = torch.randn(4, 16, shape.width)
        x_BTD[..., 0] = 2.0  # a router without bias needs something constant to shut its gates on
        out_BTD = part(x_BTD, context := Context())
        loss = (out_BTD - x_BTD @ target).square().mean()
        (loss + context.trace.auxiliary_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        active.append(context.trace.counts[0, "experts"][0] / 64)
    assert active[0] > 3  # half of the gates are open at first
    assert sum(active[-150:]) / 150 == pytest.approx(2.0, abs=0.25)


def test_the_coefficient_comes_back_from_wherever_it_went(shape: ModelConfig) -> None:
    part = part_of("default", shape)
    part.router.weight.data.fill_(1.0)
    part.router.exponent.fill_(-500)
    for _ in range(500):
        part(torch.ones(1, 1, shape.width, dtype=torch.float64), Context())
    assert part.options.coefficient(part.router.exponent).item() == pytest.approx(1e-8)


class TestEveryScheme(checks.EveryScheme):
    """On each of the schemes above."""
