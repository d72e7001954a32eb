"""Selections that are not learned: their cost, their randomness or regularity, their repetition.

B sequences, T tokens, D width.
"""

import pytest
import torch
from torch import Tensor

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.routing.baselines import CONTROLS
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)


def model_of(scores: str, seed: int = 0, **options: object) -> Decoder:
    return build_model(SHAPE, build_router("mod", {"scores": scores, **options}), seed=seed)


def selected(model: Decoder, tokens_BT: Tensor, rule: str) -> dict[int, Tensor]:
    """Selected tokens, by layer."""
    context = Context(selection=rule)
    with torch.no_grad():
        model(tokens_BT, context)
    return {layer: mask for (layer, name), mask in context.trace.tensors.items() if name == "selected"}


@pytest.mark.parametrize("scores", CONTROLS)
def test_a_control_has_no_parameters_and_no_matmuls_of_its_own(scores: str) -> None:
    model, dense = model_of(scores), build_model(SHAPE, build_router("vanilla"))
    for kind in ("total", "active"):
        assert model.parameter_count(kind) == dense.parameter_count(kind)
    components = set(model.ledger(Workload.uniform(2, 63, "train")).by_component())
    assert components == {"attention.qkv", "attention.scores", "attention.out", "mlp", "head"}
    assert components == set(dense.ledger(Workload.uniform(2, 63, "train")).by_component())
    plain = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain[name.replace(".block.", ".")]), name


@pytest.mark.parametrize("scores", CONTROLS)
def test_its_gate_is_one(scores: str) -> None:
    layer = model_of(scores, capacity=1.0).layers[1].double()
    x_BTD = torch.randn(2, 11, SHAPE.width, dtype=torch.float64)
    context = Context()
    assert torch.equal(layer(x_BTD, context), x_BTD + layer.block.delta(x_BTD, Context()))
    assert context.trace.tensors[1, "gate"].eq(1).all()
    assert not context.trace.losses


@pytest.mark.parametrize("frozen", ["embedding", ".block.attention."])
@pytest.mark.parametrize("scores", ["gaussian"])
def test_what_is_frozen_costs_no_gradient(scores: str, frozen: str) -> None:
    model = model_of(scores).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    context = Context()
    with FlopCounter() as counter:
        model(torch.randint(97, (2, 31)), context).square().mean().backward()
    ledger = model.ledger(Workload.uniform(2, 31, "train", counts=context.trace.counts))
    assert ledger.total("full") == counter.under("full") > 0
    assert ledger.total("executed") == counter.executed


def test_random_scores_select_evenly_and_independently() -> None:
    model = model_of("gaussian").train()
    tokens_BT = torch.zeros(8, 2000, dtype=torch.long)
    masks = [selected(model, tokens_BT, "topk")[1].double() for _ in range(4)]
    where_T = torch.stack(masks).mean((0, 1))  # 32 draws of each place
    halves = where_T[:1000].mean(), where_T[1000:].mean()
    assert abs(halves[0] - halves[1]) < 0.01
    assert where_T.std() < 1.3 * (0.125 * 0.875 / 32) ** 0.5
    layers = selected(model, tokens_BT, "topk")
    rows = [layers[1][0], layers[1][1], layers[3][0], masks[0][0], masks[1][0]]
    rows.append(
        model.layers[1].control(torch.zeros(1, 2000, 1), Context(selection="causal"))[0] >= 0.875
    )
    alike_RR = torch.corrcoef(torch.stack(rows).double()) - torch.eye(len(rows), dtype=torch.float64)
    assert alike_RR.abs().max() < 0.1  # other sequences, layers, steps and rules draw for themselves


@pytest.mark.parametrize("capacity", [0.01, 0.5])
def test_under_the_causal_rule_random_scores_select_their_share(capacity: float) -> None:
    layer = model_of("gaussian", capacity=capacity).layers[1]
    scores_BT = layer.control(torch.zeros(1, 40_000, 1), Context(selection="causal"))
    share = (scores_BT >= layer._cut()).double().mean()
    assert abs(share - capacity) < 4 * (capacity * (1 - capacity) / 40_000) ** 0.5 + 1e-9


def test_draws_go_on_in_training_only_and_where_a_saved_state_left_off() -> None:
    model = model_of("gaussian").train()
    tokens_BT = torch.zeros(2, 63, dtype=torch.long)
    first, second = (selected(model, tokens_BT, "topk")[1] for _ in range(2))
    assert not torch.equal(first, second)
    resumed = model_of("gaussian").train()
    resumed.load_state_dict(model.state_dict())
    third = selected(model, tokens_BT, "topk")[1]
    assert torch.equal(selected(resumed, tokens_BT, "topk")[1], third)
    model.eval()
    again = [selected(model, tokens_BT, "topk")[1] for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], third)
    assert model.layers[1].control.draws == 3


def test_a_pass_run_again_sees_the_draw_it_had() -> None:
    """Two passes before either backward pass: the checkpointed second runs of both must find theirs."""
    gradients = []
    for checkpoint in (False, True):
        model = model_of("gaussian", every=1).train()
        tokens_BT = torch.arange(66).view(2, 33)
        losses = [model(tokens_BT, Context(checkpoint=checkpoint)).square().mean() for _ in range(2)]
        sum(losses).backward()
        assert model.layers[1].control.draws == 2
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("scores", ["gaussian", "hash"])
def test_another_seed_selects_others(scores: str) -> None:
    tokens_BT = torch.arange(63)[None] % 97
    one, same, other = (selected(model_of(scores, seed), tokens_BT, "topk")[1] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_hash_depends_on_the_token_and_the_layer_alone() -> None:
    model = model_of("hash", capacity=0.3)
    vocabulary_1V = torch.arange(97)[None]
    scores_V = model.layers[1].control(torch.zeros(1, 97, 1), Context(tokens_BT=vocabulary_1V))[0]
    assert len(scores_V.unique()) == 97
    shuffled_V = torch.randperm(97)
    again_V = model.layers[1].control(torch.zeros(1, 97, 1), Context(tokens_BT=shuffled_V[None]))[0]
    assert torch.equal(again_V, scores_V[shuffled_V])
    masks = selected(model.eval(), torch.randint(97, (3, 40)), "causal")
    assert not torch.equal(masks[1], masks[3])


def test_a_trained_hash_selects_about_its_share_of_uneven_tokens() -> None:
    model = model_of("hash", capacity=0.25).train()
    likelihood_V = 1 / torch.arange(1, 98)

    def text(sequences: int) -> Tensor:
        return torch.multinomial(likelihood_V, sequences * 128, replacement=True).view(sequences, 128)

    for _ in range(40):
        selected(model, text(4), "topk")
    masks = selected(model.eval(), text(64), "causal")
    for mask_BT in masks.values():
        assert 0.1 < mask_BT.double().mean() < 0.4


@pytest.mark.parametrize("capacity", [0.07, 2 / 3])
def test_a_stride_is_the_same_under_both_rules_and_token_by_token(capacity: float) -> None:
    model = model_of("stride", capacity=capacity).eval()
    tokens_BT = torch.zeros(2, 63, dtype=torch.long)
    topk, causal = (selected(model, tokens_BT, rule)[1] for rule in ("topk", "causal"))
    assert torch.equal(topk, causal)
    places = {int(j / capacity + 1e-9) for j in range(63)}
    assert topk[0].nonzero().squeeze(1).tolist() == [t for t in range(63) if t in places]
    cache, entered = Cache(2), []
    for place in range(63):
        context = Context(selection="causal", cache=cache)
        with torch.no_grad():
            model(tokens_BT[:, place : place + 1], context)
        entered.append(context.trace.tensors[1, "selected"])
    assert torch.equal(torch.cat(entered, 1), causal)


@pytest.mark.parametrize("scores", CONTROLS)
def test_no_numbers_are_sent_to_a_device_in_a_step(scores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would be waited for: from a second step on, no tensor is made of numbers of the host."""
    model, tokens_BT = model_of(scores).train(), torch.randint(97, (2, 24))
    model(tokens_BT, Context()).sum().backward()
    made = []
    tensor = torch.tensor
    monkeypatch.setattr(
        torch, "tensor", lambda *given, **words: made.append(given) or tensor(*given, **words)
    )
    model(tokens_BT, Context()).sum().backward()
    assert not made
