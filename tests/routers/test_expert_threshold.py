"""Expert Threshold routing against a plain loop, its thresholds, and what every scheme must show.

B sequences, T tokens, D width, E experts.
"""

import copy
import math

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
from modbench.routers.expert_threshold import ThresholdExperts

OPTIONS: dict[str, dict] = {
    "default": {},
    "softmax": {"gate": "softmax", "experts": 5, "capacity": 1.0, "expert_width": 7},
    "everyone": {"experts": 2, "capacity": 2.0},
}


@pytest.fixture(params=OPTIONS)
def scheme(request: pytest.FixtureRequest, shape: ModelConfig) -> checks.Scheme:
    return checks.Scheme("expert_threshold", OPTIONS[request.param], shape)


def part_of(name: str, shape: ModelConfig) -> ThresholdExperts:
    model = build_model(shape, build_router("expert_threshold", OPTIONS[name]), seed=5).double()
    part = model.layers[0].feed_forward
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    part.threshold.value.copy_(torch.linspace(-1, 1, part.options.experts))
    return part.train()


def loop(part: ThresholdExperts, threshold_E: Tensor, x_TD: Tensor) -> Tensor:
    """Section 3: y_t = sum of g(r_ti) E_i(x_t) over the experts with r_ti >= c_i."""
    bank, rows = part.bank, []
    for x_D in x_TD:
        logits_E = part.router @ x_D
        gates_E = logits_E.sigmoid() if part.options.gate == "sigmoid" else logits_E.softmax(0)
        out_D = torch.zeros_like(x_D)
        for number in range(part.options.experts):
            if logits_E[number] >= threshold_E[number]:
                up = bank.up[number] @ x_D
                if part.model.mlp == "swiglu":
                    gate, value = up.chunk(2)
                    hidden = F.silu(gate) * value
                else:
                    hidden = F.gelu(up)
                out_D = out_D + gates_E[number] * (bank.down[number] @ hidden)
        rows.append(out_D)
    return torch.stack(rows)


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [(63,), (17, 63, 1)], ids=["one-of-63", "ragged"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_plain_loop(
    name: str, lengths: tuple[int, ...], rule: str, shape: ModelConfig
) -> None:
    equals_its_plain_loop(name, lengths, rule, shape)


def test_it_equals_its_plain_loop_on_a_thousand_tokens() -> None:
    small = ModelConfig(vocabulary=5, width=8, layers=1, heads=2, mlp_width=8)
    equals_its_plain_loop("default", (1000, 41, 300), "topk", small)


def equals_its_plain_loop(name: str, lengths: tuple[int, ...], rule: str, shape: ModelConfig) -> None:
    part = part_of(name, shape)
    twin, threshold_E = copy.deepcopy(part), part.threshold.value.clone()
    x_BTD = torch.randn(len(lengths), max(lengths), shape.width, dtype=torch.float64)
    fast_BTD = part(x_BTD, Context(selection=rule, lengths_B=checks.lengths_of(lengths)))
    weight_BTD = torch.randn_like(fast_BTD)
    fast_loss = slow_loss = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths):
        slow_TD = loop(twin, threshold_E, x_BTD[row, :length])
        torch.testing.assert_close(fast_BTD[row, :length], slow_TD)
        assert not fast_BTD[row, length:].any()  # padding meets no expert
        fast_loss = fast_loss + (fast_BTD[row, :length] * weight_BTD[row, :length]).sum()
        slow_loss = slow_loss + (slow_TD * weight_BTD[row, :length]).sum()
    fast_loss.backward()
    slow_loss.backward()
    for (key, ours), theirs in zip(part.named_parameters(), twin.parameters(), strict=True):
        assert theirs.grad.any(), key
        torch.testing.assert_close(ours.grad, theirs.grad, msg=key)


def test_thresholds_follow_the_kth_highest_of_real_tokens_in_training_only(shape: ModelConfig) -> None:
    part = part_of("default", shape)
    x_BTD = torch.randn(2, 16, shape.width, dtype=torch.float64)
    before_E = part.threshold.value.clone()
    part.eval()(x_BTD, Context())
    part.train()(x_BTD, Context(selection="causal"))
    assert torch.equal(part.threshold.value, before_E)
    for step in range(1, 4):
        part(x_BTD, Context(lengths_B=torch.tensor([16, 5])))
        logits_NE = torch.cat((x_BTD[0], x_BTD[1, :5])) @ part.router.T
        k = math.ceil(21 * 2 / 8)
        kth_E = torch.stack([logits_E.sort(descending=True).values[k - 1] for logits_E in logits_NE.T])
        torch.testing.assert_close(part.threshold.value, kth_E)
        assert part.threshold.updates == step


def test_a_pass_routes_by_the_thresholds_that_it_found(shape: ModelConfig) -> None:
    """The first training pass moves them a long way; what it gives is what the causal rule gave."""
    part = part_of("default", shape)
    x_BTD = torch.randn(2, 16, shape.width, dtype=torch.float64)
    causal_BTD = part(x_BTD, Context(selection="causal"))
    before_E = part.threshold.value.clone()
    assert torch.equal(part(x_BTD, Context()), causal_BTD)
    assert not torch.equal(part.threshold.value, before_E)


def test_the_load_comes_to_the_capacity_in_expectation(shape: ModelConfig) -> None:
    model = build_model(shape, build_router("expert_threshold")).train()
    part = model.layers[0].feed_forward

    def fanout(part: ThresholdExperts, sequences: int) -> Tensor:
        context = Context()
        part(F.rms_norm(torch.randn(sequences, 64, shape.width) + 0.5, (shape.width,)), context)
        return context.trace.tensors[0, "load"] / (sequences * 64 / part.options.experts)

    assert 1.0 < fanout(part, 8).mean() < 3.0  # the start is near 2 before anything was seen
    for _ in range(30):
        fanout(part, 8)
    torch.testing.assert_close(fanout(part.eval(), 64), torch.full((8,), 2.0), rtol=0.1, atol=0)


def test_a_token_exactly_at_the_threshold_is_in(shape: ModelConfig) -> None:
    part = part_of("default", shape)
    torch.nn.init.zeros_(part.router)
    part.threshold.value.zero_()
    context = Context()
    part(torch.randn(1, 5, shape.width, dtype=torch.float64), context)
    assert context.trace.counts[0, "experts"] == (5 * 8,)


def test_a_batch_that_reaches_no_threshold_costs_the_router_alone(shape: ModelConfig) -> None:
    scheme = checks.Scheme("expert_threshold", {}, shape)
    model = scheme.built()
    for layer in model.layers:
        layer.feed_forward.threshold.value.fill_(1e9)
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
    checks.frozen_parts_cost_no_gradient(checks.Scheme("expert_threshold", {}, shape))


def test_it_decodes_what_it_scores(scheme: checks.Scheme) -> None:
    checks.decodes_what_it_scores(scheme)


def test_it_passes_the_audit(shape: ModelConfig) -> None:
    checks.passes_the_audit(checks.Scheme("expert_threshold", {}, shape))


def test_it_runs_again_as_it_ran(scheme: checks.Scheme) -> None:
    checks.runs_again_as_it_ran(scheme)


def test_it_stands_in_every_dtype(scheme: checks.Scheme) -> None:
    checks.stands_in_every_dtype(scheme)


def test_it_saves_and_loads(scheme: checks.Scheme) -> None:
    checks.saves_and_loads(scheme)


def test_active_flops_are_the_dense_mlps(shape: ModelConfig) -> None:
    load = checks.Load.uniform(1, 64)
    routed = build_model(shape, build_router("expert_threshold")).ledger(load).by_component()
    dense = build_model(shape, build_router("vanilla")).ledger(load).by_component()
    assert routed["experts"] == dense["mlp"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": 0}, "experts is 0; it must be 1 or more"),
        ({"capacity": 9.0}, "capacity is 9 with 8 experts; it must lie above 0"),
        ({"expert_width": 0}, "expert_width is 0; it must be 1 or more"),
        ({"threshold_decay": 1.0}, r"threshold_decay is 1.0; it must lie in \[0, 1\)"),
        ({"gate": "relu"}, "gate"),
        ({"capacity": 3.0}, "mlp_width 64 can't be shared by 3 active experts"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, words: str) -> None:
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
    with pytest.raises(UserError, match=words):
        build_model(shape, build_router("expert_threshold", options))
