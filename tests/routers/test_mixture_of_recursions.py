"""Mixture-of-Recursions against a plain loop, its sharing, and what every scheme must show.

B sequences, T tokens, D width.
"""

import copy
import math
from pathlib import Path

import layer_checks as checks
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modbench.errors import UserError
from modbench.model.block import Block
from modbench.model.cache import Cache
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder, build_model
from modbench.model.registry import build_router
from modbench.routers.mixture_of_recursions import Recursions
from modbench.train.config import TrainConfig
from modbench.train.loop import build_optimizer

SIX = ModelConfig(vocabulary=97, width=32, layers=6, heads=4, mlp_width=64)
FIVE = ModelConfig(
    vocabulary=101, width=24, layers=5, heads=6, kv_heads=2, mlp="gelu", mlp_width=20, tied_head=False
)
OPTIONS: dict[str, tuple[ModelConfig, dict]] = {
    "2x2": (SIX, {}),
    "1x3": (FIVE, {"recursions": 3}),
    "published": (SIX, {"residual": "full", "gate_scale": 0.1, "auxiliary": 1.0}),
    "token-2x2": (SIX, {"depth": "token_choice"}),
    "token-1x3": (
        FIVE,
        {"depth": "token_choice", "recursions": 3, "residual": "full", "gate_scale": 0.7},
    ),
}


@pytest.fixture(params=[name for name in OPTIONS if name != "published"])  # it costs what 2x2 does
def scheme(request: pytest.FixtureRequest) -> checks.Scheme:
    shape, options = OPTIONS[request.param]
    return checks.Scheme("mixture_of_recursions", options, shape)


def model_of(name: str) -> Decoder:
    shape, options = OPTIONS[name]
    return build_model(shape, build_router("mixture_of_recursions", options), seed=5)


def layer_of(shape: ModelConfig, options: dict) -> Recursions:
    model = build_model(shape, build_router("mixture_of_recursions", options), seed=5).double()
    layer = model.layers[1]
    for name, parameter in layer.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.0 if name == "router" else 0.2)
    return layer.train()


def applied(layer: Recursions, rows: list[Tensor], chosen: list[int]) -> Tensor:
    """f: the shared blocks, one after the other, on the chosen tokens alone."""
    stream_KD = torch.stack([rows[t] for t in chosen])
    for block in layer.blocks:
        stream_KD = checks.plain_block(block, stream_KD, chosen)
    return stream_KD


def loop_expert_choice(
    layer: Recursions, x_TD: Tensor, rule: str
) -> tuple[Tensor, list[list[int]], list[list[tuple[Tensor, bool]]]]:
    """Equation 2.1 with hierarchical filtering; and who takes part in each recursion, and each router's
    probabilities with what they should have said."""
    options, rows = layer.options, list(x_TD)
    active, took_part, asked = list(range(len(rows))), [], []
    for r in range(options.recursions):
        g = [1 / (1 + torch.exp(-(layer.router[r] @ row))) for row in rows]
        if r == 0:
            chosen = active
        elif rule == "causal":
            chosen = [t for t in active if g[t].item() >= 0.5]
        else:
            k = math.ceil(len(rows) * (options.recursions - r) / options.recursions)
            chosen = sorted(sorted(active, key=lambda t: (-g[t].item(), t))[:k])
        if r:
            asked.append([(g[t], t in chosen) for t in active])
        took_part.append(chosen)
        if chosen:
            given_KD = applied(layer, rows, chosen)
            rows = list(rows)
            for place, t in enumerate(chosen):
                f = given_KD[place] if options.residual == "full" else given_KD[place] - rows[t]
                rows[t] = rows[t] + options.gate_scale * g[t] * f
        active = chosen
    return torch.stack(rows), took_part, asked


def loop_token_choice(
    layer: Recursions, x_TD: Tensor, rule: str
) -> tuple[Tensor, list[list[int]], list[Tensor]]:
    """A token takes as many recursions as its router's largest output says, with the gate where it
    leaves; and who takes part in each, and the router's outputs."""
    options = layer.options
    gates = [(layer.router @ x_D).softmax(0) for x_D in x_TD]
    depths = [1 + max(range(options.recursions), key=lambda i: (g[i].item(), -i)) for g in gates]
    rows, took_part = list(x_TD), []
    for r in range(1, options.recursions + 1):
        chosen = [t for t, depth in enumerate(depths) if depth >= r]
        took_part.append(chosen)
        if chosen:
            given_KD = applied(layer, rows, chosen)
            rows = list(rows)
            for place, t in enumerate(chosen):
                rows[t] = given_KD[place]
    out = []
    for x_D, row, g, depth in zip(x_TD, rows, gates, depths, strict=True):
        f = row if options.residual == "full" else row - x_D
        out.append(x_D + options.gate_scale * g[depth - 1] * f)
    return torch.stack(out), took_part, gates


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [(63,), (9, 17, 1)], ids=["one-of-63", "ragged"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_plain_loop(name: str, lengths: tuple[int, ...], rule: str) -> None:
    equals_its_plain_loop(*OPTIONS[name], lengths, rule)


@pytest.mark.parametrize("depth", ["expert_choice", "token_choice"])
def test_it_equals_its_plain_loop_on_a_thousand_tokens(depth: str) -> None:
    small = ModelConfig(vocabulary=5, width=4, layers=4, heads=1, mlp_width=4)
    equals_its_plain_loop(small, {"depth": depth}, (1000, 41, 7), "topk")


def equals_its_plain_loop(
    shape: ModelConfig, options: dict, lengths: tuple[int, ...], rule: str
) -> None:
    layer = layer_of(shape, options)
    by_token = layer.options.depth == "token_choice"
    twin = copy.deepcopy(layer)
    x_BTD = torch.randn(len(lengths), max(lengths), shape.width, dtype=torch.float64)
    context = Context(selection=rule, lengths_B=checks.lengths_of(lengths))
    fast_BTD = layer(x_BTD, context)
    weight_BTD = torch.randn_like(fast_BTD)
    fast_loss = slow_loss = torch.zeros((), dtype=torch.float64)
    told: list = []
    for row, length in enumerate(lengths):
        loop = loop_token_choice if by_token else loop_expert_choice
        slow_TD, took_part, said = loop(twin, x_BTD[row, :length], rule)
        told.append(said)
        torch.testing.assert_close(fast_BTD[row, :length], slow_TD, rtol=1e-6, atol=1e-8)
        for r in range(1, layer.options.recursions):
            for number in range(1 + r * len(layer.blocks), 1 + (r + 1) * len(layer.blocks)):
                selected_T = context.trace.tensors[number, "selected"][row]
                assert selected_T.nonzero().flatten().tolist() == took_part[r]
                assert context.trace.counts[number, "depth"][row] == len(took_part[r])
        fast_loss = fast_loss + (fast_BTD[row, :length] * weight_BTD[row, :length]).sum()
        slow_loss = slow_loss + (slow_TD * weight_BTD[row, :length]).sum()
    losses = plain_losses(twin, told) if rule == "topk" else {}
    assert context.trace.losses.keys() == losses.keys()
    for key, loss in losses.items():
        torch.testing.assert_close(context.trace.losses[key], loss)
        fast_loss = fast_loss + 1000 * context.trace.losses[key]
        slow_loss = slow_loss + 1000 * loss
    fast_loss.backward()
    slow_loss.backward()
    for (key, ours), theirs in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert theirs.grad.any(), key
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=key)


def plain_losses(layer: Recursions, told: list) -> dict[tuple[int, str], Tensor]:
    options = layer.options
    if options.depth == "token_choice":
        gates = [g for sequence in told for g in sequence]
        balance = torch.zeros((), dtype=torch.float64)
        for i in range(options.recursions):
            f_i = options.recursions / len(gates) * sum(g.argmax().item() == i for g in gates)
            balance = balance + f_i * sum(g[i] for g in gates) / len(gates)
        return {(1, "balance"): options.balance * balance}
    losses = {}
    for r in range(1, options.recursions):
        errors = [-torch.log(g if kept else 1 - g) for asked in told for g, kept in asked[r - 1]]
        mean = sum(errors) / len(errors)
        losses[1 + r * len(layer.blocks), "causal_rule"] = options.auxiliary * mean
    return losses


def test_each_recursion_is_of_the_written_share() -> None:
    layer = layer_of(FIVE, {"recursions": 3})
    for tokens in (1, 2, 3, 7, 63, 64):
        context = Context()
        layer(torch.randn(2, tokens, FIVE.width, dtype=torch.float64), context)
        for r in (1, 2):
            count = math.ceil(tokens * (3 - r) / 3)
            assert context.trace.counts[1 + r, "depth"] == (count, count)
            load = checks.Load.uniform(2, tokens)
            assert layer.promised(load)[1 + r, "depth"] == (count, count)


def test_who_is_done_stays_done_and_keeps_its_value() -> None:
    layer = layer_of(FIVE, {"recursions": 3})
    twin = layer_of(FIVE, {"recursions": 3})
    x_BTD = torch.randn(2, 31, FIVE.width, dtype=torch.float64)
    for rule in ("topk", "causal"):
        out_BTD = layer(x_BTD, context := Context(selection=rule))
        second_BT = context.trace.tensors[2, "selected"]
        third_BT = context.trace.tensors[3, "selected"]
        assert not (third_BT & ~second_BT).any()
        # With the router of the third recursion changed, only who was in the second one moves.
        twin.load_state_dict(layer.state_dict())
        twin.router.data[2] += torch.randn(FIVE.width)
        other_BTD = twin(x_BTD, Context(selection=rule))
        assert torch.equal(out_BTD[~second_BT], other_BTD[~second_BT])
        assert not torch.equal(out_BTD, other_BTD)


def test_with_every_gate_1_each_token_passes_all_blocks() -> None:
    """Then a recursion is the dense model whose layers repeat."""
    shape, options = SIX, {"depth": "token_choice"}
    layer = layer_of(shape, options)
    layer.router.data.zero_()
    x_BTD = torch.randn(2, 11, shape.width, dtype=torch.float64)
    x_BTD[..., 0] = 1.0
    layer.router.data[1, 0] = 1e4  # everyone takes both recursions, with a softmax of exactly 1
    stream_BTD = x_BTD
    for _ in range(2):
        for block in layer.blocks:
            stream_BTD = block(stream_BTD, Context())
    torch.testing.assert_close(layer(x_BTD, Context()), stream_BTD)


@pytest.mark.parametrize("name", ["2x2", "token-1x3"])
def test_shared_parameters_are_there_once(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    shape = model.config
    dense = build_model(shape, build_router("vanilla"))
    each = sum(p.numel() for p in dense.layers[1].parameters())
    unshared = (shape.layers - 2) // model.router.recursions
    left_out = (shape.layers - 2 - unshared) * each
    routers = model.router.recursions * shape.width
    assert model.parameter_count() == dense.parameter_count() - left_out + routers
    assert model.parameter_count("active") == model.parameter_count()
    parameters = list(model.parameters())
    assert len({p.data_ptr() for p in parameters}) == len(parameters)
    groups = build_optimizer(model, TrainConfig(budget=1)).param_groups
    assert sum(len(group["params"]) for group in groups) == len(parameters)
    save_file(model.state_dict(), tmp_path / "weights")  # refuses tensors that share memory
    other = build_model(shape, model.router, seed=9)
    other.load_state_dict(load_file(tmp_path / "weights"))
    tokens_BT = torch.randint(shape.vocabulary, (2, 9))
    assert torch.equal(other(tokens_BT, Context()), model(tokens_BT, Context()))


def test_a_copy_shares_nothing_with_what_it_was_copied_from_and_goes_on_sharing_within() -> None:
    model = model_of("2x2")
    tokens_BT = torch.randint(SIX.vocabulary, (2, 9))
    before_BTV = model(tokens_BT, Context())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(tokens_BT, Context()), before_BTV)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(tokens_BT, Context()).square().mean().backward()
    optimizer.step()
    assert torch.equal(model(tokens_BT, Context()), before_BTV)
    after_BTV = twin(tokens_BT, Context())
    assert not torch.equal(after_BTV, before_BTV)
    fresh = model_of("2x2")
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(fresh(tokens_BT, Context()), after_BTV)


def test_shared_blocks_start_as_the_dense_models_first_ones() -> None:
    model, dense = model_of("2x2"), build_model(SIX, build_router("vanilla"), seed=5)
    for place, block in enumerate(model.layers[1].blocks):
        for ours, theirs in zip(block.parameters(), dense.layers[1 + place].parameters(), strict=True):
            assert torch.equal(ours, theirs)
    for number in (0, 5):
        assert isinstance(model.layers[number], Block)
    assert not [p for number in (2, 3, 4) for p in model.layers[number].parameters()]


@torch.no_grad()
def test_each_application_has_a_cache_of_its_own() -> None:
    model = model_of("2x2").eval()
    cache = Cache(2)
    context = Context(selection="causal", cache=cache)
    model(torch.randint(SIX.vocabulary, (2, 40)), context)
    entered = list(context.trace.counts[3, "depth"])
    assert 0 < sum(entered) < 80
    kept = [cache.lengths(number) for number in range(6)]
    assert kept == [[40, 40], [40, 40], [40, 40], entered, entered, [40, 40]]


def test_the_causal_rule_learns_who_goes_on() -> None:
    shape = ModelConfig(vocabulary=5, width=16, layers=4, heads=2, mlp_width=8)
    options = {"auxiliary": 1.0, "gate_scale": 0.01}
    model = build_model(shape, build_router("mixture_of_recursions", options), seed=5)
    layer = model.layers[1].train()
    optimizer = torch.optim.Adam([layer.router], lr=1e-2)

    def stream(sequences: int) -> Tensor:
        x_BTD = torch.randn(sequences, 64, shape.width)
        x_BTD[..., 0] = 1.0
        return x_BTD

    for _ in range(100):
        context = Context()
        layer(stream(4), context)
        context.trace.auxiliary_loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    x_BTD = stream(8)
    layer(x_BTD, top := Context())
    layer(x_BTD, causal := Context(selection="causal"))
    wanted, got = top.trace.tensors[2, "selected"], causal.trace.tensors[2, "selected"]
    assert (wanted == got).float().mean() > 0.9


def test_it_costs_what_it_selects(scheme: checks.Scheme) -> None:
    checks.costs_what_it_selects(scheme, torch.float32)


def test_it_costs_as_much_in_half_precision() -> None:
    scheme = checks.Scheme("mixture_of_recursions", {}, SIX)
    checks.costs_what_it_selects(scheme, torch.bfloat16)


def test_on_shapes_alone_it_costs_what_it_promises(scheme: checks.Scheme) -> None:
    checks.costs_what_it_promises(scheme, torch.float32)


def test_what_is_frozen_costs_no_gradient(scheme: checks.Scheme) -> None:
    checks.frozen_parts_cost_no_gradient(scheme)


def test_it_decodes_what_it_scores(scheme: checks.Scheme) -> None:
    checks.decodes_what_it_scores(scheme)


@pytest.mark.parametrize("name", ["2x2", "token-1x3"])
def test_it_passes_the_audit(name: str) -> None:
    shape, options = OPTIONS[name]
    checks.passes_the_audit(checks.Scheme("mixture_of_recursions", options, shape))


def test_it_runs_again_as_it_ran(scheme: checks.Scheme) -> None:
    checks.runs_again_as_it_ran(scheme)


def test_it_stands_in_every_dtype(scheme: checks.Scheme) -> None:
    checks.stands_in_every_dtype(scheme)


def test_it_saves_and_loads(scheme: checks.Scheme) -> None:
    checks.saves_and_loads(scheme)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recursions": 0}, "recursions is 0; it must be 1 or more"),
        ({"gate_scale": 0.0}, "gate_scale is 0; it must be above 0"),
        ({"auxiliary": 0.0}, "auxiliary is 0; it must be above 0"),
        ({"balance": -1.0}, "balance is -1; it must be 0 or more"),
        ({"depth": "expert"}, "depth"),
        ({"recursions": 3}, "layers is 6 with 3 recursions: .*; set layers to 5"),
        ({"recursions": 5}, "layers is 6 with 5 recursions: .*; set layers to 7"),
    ],
)
def test_options_that_can_not_be_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(SIX, build_router("mixture_of_recursions", options))
