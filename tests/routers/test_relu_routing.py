"""ReMoE against a plain loop, its coefficient, and what every scheme must show.

B sequences, T tokens, D width, E experts.
"""

import copy

import layer_checks as checks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import build_model
from modbench.model.registry import build_router
from modbench.routers.relu_routing import ReluExperts

OPTIONS: dict[str, dict] = {
    "default": {},
    "one-of-5": {"experts": 5, "active_experts": 1, "expert_width": 7, "start_coefficient": 0.1},
}


@pytest.fixture(params=OPTIONS)
def scheme(request: pytest.FixtureRequest, shape: ModelConfig) -> checks.Scheme:
    return checks.Scheme("relu_routing", OPTIONS[request.param], shape)


def part_of(name: str, shape: ModelConfig) -> ReluExperts:
    model = build_model(shape, build_router("relu_routing", OPTIONS[name]), seed=5).double()
    part = model.layers[0].feed_forward
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return part.train()


def loop(part: ReluExperts, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 1 and 5; and the gates (T, E), from which the loss follows."""
    bank, rows, gates_TE = part.bank, [], []
    for x_D in x_TD:
        gates_E = [F.relu(part.router[e] @ x_D) for e in range(part.options.experts)]
        out_D = torch.zeros_like(x_D)
        for number, gate in enumerate(gates_E):
            up = bank.up[number] @ x_D
            if part.model.mlp == "swiglu":
                first, value = up.chunk(2)
                hidden = F.silu(first) * value
            else:
                hidden = F.gelu(up)
            out_D = out_D + gate * (bank.down[number] @ hidden)
        rows.append(out_D)
        gates_TE.append(torch.stack(gates_E))
    return torch.stack(rows), torch.stack(gates_TE)


def loop_loss(part: ReluExperts, gates_TE: Tensor) -> Tensor:
    """Equations 10 and 11, this layer's part of the sum over all."""
    tokens, experts = gates_TE.shape
    loss = torch.zeros((), dtype=gates_TE.dtype)
    for e in range(experts):
        f_e = experts / (part.options.active_experts * tokens) * sum(g > 0 for g in gates_TE[:, e])
        for t in range(tokens):
            loss = loss + f_e * gates_TE[t, e]
    return loss / (part.model.layers * tokens)


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [(63,), (17, 63, 1)], ids=["one-of-63", "ragged"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_plain_loop(
    name: str, lengths: tuple[int, ...], rule: str, shape: ModelConfig
) -> None:
    equals_its_plain_loop(name, lengths, rule, shape)


def test_it_equals_its_plain_loop_on_a_thousand_tokens() -> None:
    small = ModelConfig(vocabulary=5, width=8, layers=1, heads=2, mlp_width=8)
    equals_its_plain_loop("one-of-5", (1000, 41, 300), "topk", small)


def equals_its_plain_loop(name: str, lengths: tuple[int, ...], rule: str, shape: ModelConfig) -> None:
    part = part_of(name, shape)
    twin = copy.deepcopy(part)
    x_BTD = torch.randn(len(lengths), max(lengths), shape.width, dtype=torch.float64)
    context = Context(selection=rule, lengths_B=checks.lengths_of(lengths))
    fast_BTD = part(x_BTD, context)
    weight_BTD = torch.randn_like(fast_BTD)
    fast_loss = slow_loss = torch.zeros((), dtype=torch.float64)
    gates_TE = []
    for row, length in enumerate(lengths):
        slow_TD, gates = loop(twin, x_BTD[row, :length])
        gates_TE.append(gates)
        torch.testing.assert_close(fast_BTD[row, :length], slow_TD)
        assert not fast_BTD[row, length:].any()  # padding meets no expert
        fast_loss = fast_loss + (fast_BTD[row, :length] * weight_BTD[row, :length]).sum()
        slow_loss = slow_loss + (slow_TD * weight_BTD[row, :length]).sum()
    if rule == "topk":
        expected = loop_loss(twin, torch.cat(gates_TE)) * twin.coefficient()
        torch.testing.assert_close(context.trace.losses[0, "sparsity"], expected)
        # Of a weight that the gradients show.
        fast_loss = fast_loss + context.trace.losses[0, "sparsity"] / twin.coefficient()
        slow_loss = slow_loss + expected / twin.coefficient()
    else:
        assert not context.trace.losses
    fast_loss.backward()
    slow_loss.backward()
    for (key, ours), theirs in zip(part.named_parameters(), twin.parameters(), strict=True):
        assert theirs.grad.any(), key
        torch.testing.assert_close(ours.grad, theirs.grad, msg=key)


@pytest.mark.parametrize(
    ("sign", "lengths", "factor"),
    [(1.0, [8, 8], 1.2), (-1.0, [8, 8], 1 / 1.2), (1.0, [8, 3], 1.2)],
    ids=["dense", "sparse", "padded"],
)
def test_the_coefficient_grows_while_too_many_experts_are_at_work(
    sign: float, lengths: list[int], factor: float, shape: ModelConfig
) -> None:
    part = part_of("default", shape)
    part.router.data.fill_(sign)
    x_BTD = torch.rand(2, 8, shape.width, dtype=torch.float64)
    for selection, training in (("topk", False), ("causal", True)):
        part.train(training)(x_BTD, Context(selection=selection))
        assert part.coefficient().item() == pytest.approx(1e-8)
    context = Context(lengths_B=torch.tensor(lengths))
    part.train()(x_BTD, context)
    assert context.trace.counts[0, "experts"] == (sum(lengths) * 8 if sign > 0 else 0,)
    assert part.coefficient().item() == pytest.approx(1e-8 * factor)


def test_a_load_that_is_on_target_leaves_the_coefficient_alone(shape: ModelConfig) -> None:
    part = part_of("default", shape)
    part.router.data.fill_(-1.0)
    part.router.data[:2] = 1.0
    part(torch.rand(2, 8, shape.width, dtype=torch.float64), Context())
    assert part.coefficient().item() == pytest.approx(1e-8)


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
    part.router.data.fill_(1.0)
    part.exponent.fill_(-500)
    for _ in range(500):
        part(torch.ones(1, 1, shape.width, dtype=torch.float64), Context())
    assert part.coefficient().item() == pytest.approx(1e-8)


def test_no_gate_that_is_shut_costs_anything(shape: ModelConfig) -> None:
    scheme = checks.Scheme("relu_routing", {}, shape)
    model = scheme.built()
    for layer in model.layers:
        torch.nn.init.zeros_(layer.feed_forward.router)
    context, counter = checks.train(model, scheme.tokens(2, 9))
    assert context.trace.counts[0, "experts"] == (0,)
    load = checks.Load.uniform(2, 9, "train", counts=context.trace.counts)
    checks.same(model.ledger(load), counter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_costs_what_it_selects(scheme: checks.Scheme, dtype: torch.dtype) -> None:
    checks.costs_what_it_selects(scheme, dtype)


def test_on_shapes_alone_it_costs_what_it_promises(scheme: checks.Scheme) -> None:
    checks.costs_what_it_promises(scheme, torch.float32)


def test_what_is_frozen_costs_no_gradient(shape: ModelConfig) -> None:
    checks.frozen_parts_cost_no_gradient(checks.Scheme("relu_routing", {}, shape))


def test_it_decodes_what_it_scores(scheme: checks.Scheme) -> None:
    checks.decodes_what_it_scores(scheme)


def test_it_passes_the_audit(shape: ModelConfig) -> None:
    checks.passes_the_audit(checks.Scheme("relu_routing", {}, shape))


def test_it_runs_again_as_it_ran(scheme: checks.Scheme) -> None:
    checks.runs_again_as_it_ran(scheme)


def test_it_stands_in_every_dtype(scheme: checks.Scheme) -> None:
    checks.stands_in_every_dtype(scheme)


def test_it_saves_and_loads(scheme: checks.Scheme) -> None:
    checks.saves_and_loads(scheme)


def test_active_flops_are_the_dense_mlps(shape: ModelConfig) -> None:
    load = checks.Load.uniform(1, 64)
    routed = build_model(shape, build_router("relu_routing")).ledger(load).by_component()
    dense = build_model(shape, build_router("vanilla")).ledger(load).by_component()
    assert routed["experts"] == dense["mlp"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": 0}, "experts is 0; it must be 1 or more"),
        ({"active_experts": 9}, "active_experts is 9 of 8 experts; it must lie between 1 and experts"),
        ({"expert_width": 0}, "expert_width is 0; it must be 1 or more"),
        ({"start_coefficient": 0.0}, "start_coefficient is 0.0; it must be above 0"),
        ({"multiplier": 1.0}, "multiplier is 1; it must be above 1"),
        ({"active_experts": 3}, "mlp_width 64 can't be shared by 3 active experts"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, words: str) -> None:
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
    with pytest.raises(UserError, match=words):
        build_model(shape, build_router("relu_routing", options))
