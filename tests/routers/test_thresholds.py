"""Schemes whose tokens are selected by what reaches a threshold (Expert Threshold, ReMoE, layer
skipping): against plain loops, how their selection comes to its target, and what costs where none is
selected.

B sequences, T tokens, D width.
"""

from collections.abc import Callable

import layer_checks as checks
import pytest
import torch
import torch.nn.functional as F
from against_loop import equals_its_loop, model_of, routed_part
from torch import Tensor, nn

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import build_router

OPTIONS: list[tuple[str, dict]] = [
    ("expert_threshold", {}),
    (
        "expert_threshold",
        {"gate": "softmax", "experts": 5, "capacity": 1.0, "expert_width": 7},
    ),
    ("expert_threshold", {"experts": 2, "capacity": 2.0}),
    ("relu_routing", {}),
    ("relu_routing", {"experts": 5, "active_experts": 1, "expert_width": 7, "start_coefficient": 0.1}),
    ("threshold_skip", {}),
    ("threshold_skip", {"target": 0.125, "every": 1, "gate": "sigmoid", "penalty": 3.0}),
]


def part_of(router: str, options: dict, shape: ModelConfig) -> nn.Module:
    part = routed_part(model_of(router, options, shape))
    if router == "expert_threshold":
        part.router.threshold.value.copy_(torch.linspace(-1, 1, part.options.experts))
    return part


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize(("router", "options"), OPTIONS)
def test_it_equals_its_plain_loop(router: str, options: dict, rule: str, shape: ModelConfig) -> None:
    equals_its_loop(part_of(router, options, shape), (17, 63, 1), rule)


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


@pytest.mark.parametrize(
    ("sign", "lengths", "factor"),
    [(-1.0, [8, 8], 1 / 1.2), (1.0, [8, 3], 1.2)],
    ids=["sparse", "padded"],
)
def test_the_coefficient_grows_while_too_many_experts_are_at_work(
    sign: float, lengths: list[int], factor: float, shape: ModelConfig
) -> None:
    part = part_of("relu_routing", {}, shape)
    part.router.weight.data.fill_(sign)
    x_BTD = torch.rand(2, 8, shape.width, dtype=torch.float64)
    for selection, training in (("topk", False), ("causal", True)):
        part.train(training)(x_BTD, Context(selection=selection))
        assert part.options.coefficient(part.router.exponent).item() == pytest.approx(1e-8)
    context = Context(lengths_B=torch.tensor(lengths))
    part.train()(x_BTD, context)
    assert context.trace.counts[1, "experts"] == (sum(lengths) * 8 if sign > 0 else 0,)
    assert part.options.coefficient(part.router.exponent).item() == pytest.approx(1e-8 * factor)


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


def test_it_starts_near_its_target(shape: ModelConfig) -> None:
    for target in (0.125, 0.9):
        layer = build_model(shape, build_router("threshold_skip", {"target": target})).layers[1]
        context = Context()
        layer(torch.randn(16, 64, shape.width), context)
        share = sum(context.trace.counts[1, "depth"]) / (16 * 64)
        assert share == pytest.approx(target, abs=0.1)


@pytest.mark.parametrize(("target", "start"), [(0.125, 2.0)])
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


def shut_experts(layer: nn.Module) -> None:
    layer.feed_forward.router.threshold.value.fill_(1e9)


def shut_gates(layer: nn.Module) -> None:
    nn.init.zeros_(layer.feed_forward.router.weight)


def shut_layer(layer: nn.Module) -> None:
    if hasattr(layer, "router"):
        layer.router.bias.data.fill_(-1e3)


@pytest.mark.parametrize(
    ("router", "shut", "selected"),
    [
        ("expert_threshold", shut_experts, ((0, "experts"), (0,))),
        ("relu_routing", shut_gates, ((0, "experts"), (0,))),
        ("threshold_skip", shut_layer, ((1, "depth"), (0, 0))),
    ],
)
def test_where_no_token_is_selected_the_router_alone_costs(
    router: str, shut: Callable[[nn.Module], None], selected: tuple, shape: ModelConfig
) -> None:
    scheme = checks.Scheme(router, {}, shape)
    model = scheme.built()
    for layer in model.layers:
        shut(layer)
    context, counter = checks.train(model, scheme.tokens(2, 9))
    key, counts = selected
    assert context.trace.counts[key] == counts
    workload = checks.Workload.uniform(2, 9, "train", counts=context.trace.counts)
    checks.same(model.ledger(workload), counter)


@pytest.mark.parametrize("router", ["expert_threshold", "relu_routing"])
def test_padding_meets_no_expert(router: str, shape: ModelConfig) -> None:
    part = part_of(router, {}, shape)
    x_BTD = torch.randn(2, 9, shape.width, dtype=torch.float64)
    out_BTD = part(x_BTD, Context(lengths_B=torch.tensor([9, 4])))
    assert out_BTD[1, :4].any()
    assert not out_BTD[1, 4:].any()
