"""Layer skipping against a plain loop, its budget, and what every scheme must show.

B sequences, T tokens, D width.
"""

import copy

import layer_checks as checks
import pytest
import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import build_model
from modbench.model.registry import build_router
from modbench.routers.threshold_skip import SkippableBlock

OPTIONS: dict[str, dict] = {
    "default": {},
    "eighth": {"target": 0.125, "every": 1, "gate": "sigmoid", "penalty": 3.0},
}


@pytest.fixture(params=OPTIONS)
def scheme(request: pytest.FixtureRequest, shape: ModelConfig) -> checks.Scheme:
    return checks.Scheme("threshold_skip", OPTIONS[request.param], shape)


def layer_of(shape: ModelConfig, options: dict) -> SkippableBlock:
    layer = build_model(shape, build_router("threshold_skip", options), seed=5).double().layers[1]
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return layer.train()


def loop(layer: SkippableBlock, x_TD: Tensor) -> tuple[Tensor, list[Tensor], list[bool]]:
    """Equations 7 to 10 and 13; and each token's probability and decision."""
    probabilities, decisions = [], []
    for x_D in x_TD:
        unit_D = x_D / (x_D.square().mean() + torch.finfo(x_D.dtype).eps).sqrt()
        r = (layer.router @ unit_D + layer.bias).squeeze()
        probabilities.append(1 / (1 + torch.exp(-r)))
        decisions.append(probabilities[-1].item() >= 0.5)
    chosen = [t for t, enters in enumerate(decisions) if enters]
    if not chosen:
        return x_TD, probabilities, decisions
    executed_KD = checks.plain_block(layer.block, x_TD[chosen], chosen)
    rows = list(x_TD)
    for place, t in enumerate(chosen):
        p = probabilities[t]
        if layer.options.gate == "straight_through":
            p = 1 + p - p.detach()
        rows[t] = (1 - p) * x_TD[t] + p * executed_KD[place]
    return torch.stack(rows), probabilities, decisions


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [(63,), (17, 31, 1)], ids=["one-of-63", "ragged"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_plain_loop(
    name: str, lengths: tuple[int, ...], rule: str, shape: ModelConfig
) -> None:
    equals_its_plain_loop(OPTIONS[name], lengths, rule, shape)


def test_it_equals_its_plain_loop_on_a_thousand_tokens() -> None:
    small = ModelConfig(vocabulary=5, width=8, layers=2, heads=2, mlp_width=8)
    equals_its_plain_loop({}, (1000, 41, 300), "topk", small)


def equals_its_plain_loop(
    options: dict, lengths: tuple[int, ...], rule: str, shape: ModelConfig
) -> None:
    layer = layer_of(shape, options)
    twin = copy.deepcopy(layer)
    x_BTD = torch.randn(len(lengths), max(lengths), shape.width, dtype=torch.float64)
    context = Context(selection=rule, lengths_B=checks.lengths_of(lengths))
    fast_BTD = layer(x_BTD, context)
    weight_BTD = torch.randn_like(fast_BTD)
    fast_loss = slow_loss = torch.zeros((), dtype=torch.float64)
    probabilities, decisions = [], []
    for row, length in enumerate(lengths):
        slow_TD, p, entered = loop(twin, x_BTD[row, :length])
        probabilities += p
        decisions += entered
        selected_T = context.trace.tensors[1, "selected"][row]
        assert selected_T[:length].tolist() == entered
        assert not selected_T[length:].any()
        torch.testing.assert_close(fast_BTD[row, :length], slow_TD, rtol=1e-6, atol=1e-8)
        fast_loss = fast_loss + (fast_BTD[row, :length] * weight_BTD[row, :length]).sum()
        slow_loss = slow_loss + (slow_TD * weight_BTD[row, :length]).sum()
    assert 0 < sum(decisions) < len(decisions)
    if rule == "topk":
        away = sum(decisions) / len(decisions) - twin.options.target
        budget = context.trace.losses[1, "budget"]
        assert budget.item() == pytest.approx(twin.options.penalty * away**2)
        fast_loss = fast_loss + 100 * budget
        # The decision's gradient is its probability's.
        slope = 2 * twin.options.penalty * away / len(decisions)
        slow_loss = slow_loss + 100 * slope * sum(probabilities)
    else:
        assert not context.trace.losses
    fast_loss.backward()
    slow_loss.backward()
    for (key, ours), theirs in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert theirs.grad.any(), key
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=key)


def test_who_passes_by_is_bit_identical_and_who_enters_gets_the_whole_block(shape: ModelConfig) -> None:
    layer = layer_of(shape, {}).float()
    context = Context()
    x_BTD = torch.randn(2, 16, shape.width)
    out_BTD = layer(x_BTD, context)
    entered_BT = context.trace.tensors[1, "selected"]
    assert torch.equal(out_BTD[~entered_BT], x_BTD[~entered_BT])
    layer.bias.data.fill_(1e3)
    torch.testing.assert_close(layer(x_BTD, Context()), layer.block(x_BTD, Context()))


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
    layer.bias.data.fill_(start)
    optimizer = torch.optim.Adam((layer.router, layer.bias), lr=0.05)
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
    routed = [isinstance(layer, SkippableBlock) for layer in model.layers]
    assert routed == [number % 2 == 1 for number in range(shape.layers)]


def test_where_all_pass_by_the_router_alone_costs(shape: ModelConfig) -> None:
    scheme = checks.Scheme("threshold_skip", {}, shape)
    model = scheme.built()
    model.layers[1].bias.data.fill_(-1e3)
    context, counter = checks.train(model, scheme.tokens(2, 9))
    assert context.trace.counts[1, "depth"] == (0, 0)
    load = checks.Load.uniform(2, 9, "train", counts=context.trace.counts)
    checks.same(model.ledger(load), counter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_costs_what_it_selects(scheme: checks.Scheme, dtype: torch.dtype) -> None:
    checks.costs_what_it_selects(scheme, dtype)


def test_on_shapes_alone_it_costs_what_it_promises(scheme: checks.Scheme) -> None:
    checks.costs_what_it_promises(scheme, torch.float32)


def test_what_is_frozen_costs_no_gradient(scheme: checks.Scheme) -> None:
    checks.frozen_parts_cost_no_gradient(scheme)


def test_it_decodes_what_it_scores(scheme: checks.Scheme) -> None:
    checks.decodes_what_it_scores(scheme)


def test_it_passes_the_audit(shape: ModelConfig) -> None:
    checks.passes_the_audit(checks.Scheme("threshold_skip", {}, shape))


def test_it_runs_again_as_it_ran(scheme: checks.Scheme) -> None:
    checks.runs_again_as_it_ran(scheme)


def test_it_stands_in_every_dtype(scheme: checks.Scheme) -> None:
    checks.stands_in_every_dtype(scheme)


def test_it_saves_and_loads(scheme: checks.Scheme) -> None:
    checks.saves_and_loads(scheme)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 0.0}, r"target is 0; it must lie in \(0, 1\]"),
        ({"penalty": 0.0}, "penalty is 0; it must be above 0"),
        ({"every": 0}, "every is 0; it must be 1 or more"),
        ({"gate": "linear"}, "gate"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_router("threshold_skip", options)
