"""Mixture-of-Recursions against a plain loop, its sharing, and what every scheme must show.

B sequences, T tokens, D width.
"""

from pathlib import Path

import pytest
import torch
from against_loop import equals_its_loop, model_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.routers.mixture_of_recursions import Recursions
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig
from modbench.train.optimizer import build_optimizer

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


def decoder_of(name: str) -> Decoder:
    shape, options = OPTIONS[name]
    return build_model(shape, build_router("mixture_of_recursions", options), seed=5)


def layer_of(shape: ModelConfig, options: dict) -> Recursions:
    layer = model_of("mixture_of_recursions", options, shape).layers[1]
    assert isinstance(layer, Recursions)
    return layer


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_plain_loop(name: str, rule: str) -> None:
    shape, options = OPTIONS[name]
    equals_its_loop(layer_of(shape, options), (9, 17, 1), rule)


def test_a_token_that_stopped_stays_stopped_and_keeps_its_value() -> None:
    layer = layer_of(FIVE, {"recursions": 3})
    twin = layer_of(FIVE, {"recursions": 3})
    x_BTD = torch.randn(2, 31, FIVE.width, dtype=torch.float64)
    for rule in ("topk", "causal"):
        out_BTD = layer(x_BTD, context := Context(selection=rule))
        second_BT = context.trace.tensors[2, "selected"]
        third_BT = context.trace.tensors[3, "selected"]
        assert not (third_BT & ~second_BT).any()
        # With the router of the third recursion changed, only tokens of the second one change.
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
    model = decoder_of(name)
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
    groups = build_optimizer(model, TrainConfig()).param_groups
    assert sum(len(group["params"]) for group in groups) == len(parameters)
    save_file(model.state_dict(), tmp_path / "weights")  # refuses tensors that share memory
    other = build_model(shape, model.router, seed=9)
    other.load_state_dict(load_file(tmp_path / "weights"))
    tokens_BT = torch.randint(shape.vocabulary, (2, 9))
    assert torch.equal(other(tokens_BT, Context()), model(tokens_BT, Context()))


@torch.no_grad()
def test_each_application_has_a_cache_of_its_own() -> None:
    model = decoder_of("2x2").eval()
    cache = Cache(2)
    context = Context(selection="causal", cache=cache)
    model(torch.randint(SIX.vocabulary, (2, 40)), context)
    entered = list(context.trace.counts[3, "depth"])
    assert 0 < sum(entered) < 80
    kept = [cache.lengths(number) for number in range(6)]
    assert kept == [[40, 40], [40, 40], [40, 40], entered, entered, [40, 40]]


def test_the_causal_rule_learns_which_tokens_continue() -> None:
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
