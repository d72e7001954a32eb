"""Layer skipping against a plain loop, its budget, and what every scheme must show.

B sequences, T tokens, D width.
"""

import layer_checks as checks
import pytest
import torch
from against_loop import equals_its_loop, model_of

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.registry import build_router

OPTIONS: dict[str, dict] = {
    "default": {},
    "eighth": {"target": 0.125, "every": 1, "gate": "sigmoid", "penalty": 3.0},
}


@pytest.fixture(params=checks.full_except(OPTIONS, "default"))
def scheme(request: pytest.FixtureRequest, shape: ModelConfig) -> checks.Scheme:
    return checks.Scheme("threshold_skip", OPTIONS[request.param], shape)


def layer_of(shape: ModelConfig, options: dict) -> DepthRouted:
    layer = model_of("threshold_skip", options, shape).layers[1]
    assert isinstance(layer, DepthRouted)
    return layer


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_plain_loop(name: str, rule: str, shape: ModelConfig) -> None:
    equals_its_loop(layer_of(shape, OPTIONS[name]), (17, 31, 1), rule)


def test_it_starts_near_its_target(shape: ModelConfig) -> None:
    for target in (0.125, 0.5, 0.9, 1.0):
        layer = build_model(shape, build_router("threshold_skip", {"target": target})).layers[1]
        context = Context()
        layer(torch.randn(16, 64, shape.width), context)
        share = sum(context.trace.counts[1, "depth"]) / (16 * 64)
        assert share == pytest.approx(target, abs=0.1)


@pytest.mark.parametrize(("target", "start"), [(0.125, 2.0), (0.5, -2.0)])
def test_the_budget_brings_the_share_to_its_target(target: float, start: float) -> None:
    shape = ModelConfig(vocabulary=5, width=8, layers=2, heads=2, mlp_width=8)
    layer = build_model(shape, build_router("threshold_skip", {"target": target})).layers[1].train()
    layer.router.bias.data.fill_(start)
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.05)
    for _ in range(300):
        context = Context()
        layer(torch.randn(2, 64, shape.width), context)
        context.trace.auxiliary_loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    layer(torch.randn(64, 32, shape.width), context := Context())
    share = sum(context.trace.counts[1, "depth"]) / (64 * 32)
    assert share == pytest.approx(target, abs=0.05)


def test_the_last_of_each_group_is_routed(shape: ModelConfig) -> None:
    model = build_model(shape, build_router("threshold_skip"))
    routed = [isinstance(layer, DepthRouted) for layer in model.layers]
    assert routed == [number % 2 == 1 for number in range(shape.layers)]


class TestEveryScheme(checks.EveryScheme):
    """On each of the schemes above."""


@pytest.mark.parametrize("trained", ["layers.1.block.feed_forward_norm", "layers.1.router"])
def test_no_gradient_where_no_token_is_selected(trained: str, shape: ModelConfig) -> None:
    """Only one part of a routed layer that is passed by is trained, and the last norm, which ends the
    backward pass: nothing between them runs backward."""
    model = build_model(shape, build_router("threshold_skip", {})).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith((trained, "norm.")))
    for layer in model.layers:
        if isinstance(layer, DepthRouted):
            layer.router.bias.data.fill_(-1e3)
    tokens_BT, context = torch.zeros(2, 9, dtype=torch.long), Context()
    with FlopCounter() as counter:
        (model(tokens_BT, context).sum() + context.trace.auxiliary_loss()).backward()
    workload = Workload.uniform(2, 9, "train", counts=context.trace.counts)
    assert counter.ledger == model.ledger(workload)
    assert "attention.scores" not in {
        component for (_, component, to), _ in counter.ledger if to == "backward"
    }


def test_a_bias_that_alone_is_trained_makes_a_checkpointed_layer_run_again(shape: ModelConfig) -> None:
    """It takes part in no matmul, and yet the backward pass comes to it."""
    model = build_model(shape, build_router("threshold_skip", {})).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "layers.1.router.bias")
    tokens_BT, context = torch.arange(18).view(2, 9), Context(checkpoint=True)
    with FlopCounter() as counter:
        (model(tokens_BT, context).sum() + context.trace.auxiliary_loss()).backward()
    workload = Workload.uniform(2, 9, "train", counts=context.trace.counts, checkpoint=True)
    assert counter.ledger == model.ledger(workload)
    assert "recompute" in {way for (_, _, way), _ in counter.ledger}
