"""Schemes that may select no token: then the router alone costs, and padding meets no expert.

B sequences, T tokens, D width.
"""

from collections.abc import Callable

import layer_checks as checks
import pytest
import torch
from against_loop import model_of
from torch import nn

from modbench.model.config import ModelConfig
from modbench.model.context import Context


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
    part = model_of(router, {}, shape).layers[0].feed_forward
    if router == "expert_threshold":
        part.router.threshold.value.copy_(torch.linspace(-1, 1, part.options.experts))
    x_BTD = torch.randn(2, 9, shape.width, dtype=torch.float64)
    out_BTD = part(x_BTD, Context(lengths_B=torch.tensor([9, 4])))
    assert out_BTD[1, :4].any()
    assert not out_BTD[1, 4:].any()
