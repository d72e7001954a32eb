"""The shared decoder. B sequences, T tokens, D width, V vocabulary."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.mlp import FeedForward
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router, router_names
from modbench.routing.router import Router


def test_delta_is_what_the_block_adds(shape: ModelConfig) -> None:
    block = Block(shape, 0).double()
    x_BTD = torch.randn(2, 9, shape.width, dtype=torch.float64)
    torch.testing.assert_close(x_BTD + block.delta(x_BTD, Context()), block(x_BTD, Context()))


@pytest.mark.parametrize("name", ["mod", "token_choice", "expert_choice", "mode_staged"])
def test_shared_parts_start_alike_under_every_router(name: str, shape: ModelConfig) -> None:
    dense = build_model(shape, build_router("vanilla"), seed=3)
    routed = build_model(shape, build_router(name), seed=3)
    assert torch.equal(dense.embedding.weight, routed.embedding.weight)
    for ours, theirs in zip(dense.layers, routed.layers, strict=True):
        block = getattr(theirs, "block", theirs)
        assert torch.equal(ours.attention.qkv.weight, block.attention.qkv.weight)
        assert torch.equal(ours.attention.out.weight, block.attention.out.weight)


@pytest.mark.parametrize("name", router_names())
def test_initial_weights_are_a_function_of_the_seed(name: str, shape: ModelConfig) -> None:
    first = build_model(shape, build_router(name), seed=1).state_dict()
    torch.rand(7)  # what ran before must not matter
    again = build_model(shape, build_router(name), seed=1).state_dict()
    other = build_model(shape, build_router(name), seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


@pytest.mark.parametrize("name", router_names())
def test_every_parameter_is_initialised(name: str, shape: ModelConfig) -> None:
    model = build_model(shape, build_router(name), seed=1)
    for key, parameter in model.named_parameters():
        assert parameter.isfinite().all(), key
        if parameter.dim() > 1:
            assert 0.2 < parameter.std() * parameter.shape[-1] ** 0.5 < 1.3, key


def test_active_parameters_leave_idle_experts_out() -> None:
    shape = ModelConfig(vocabulary=50, width=16, layers=2, heads=2, mlp_width=32)
    dense = build_model(shape, build_router("vanilla"))
    routed = build_model(shape, build_router("token_choice", {"experts": 4, "top_k": 2}))
    router = 2 * 4 * 16
    assert dense.parameter_count("active") == dense.parameter_count("total")
    assert routed.parameter_count("active") == dense.parameter_count("total") + router
    # Four experts of half the width: twice the dense MLP; one dense MLP is idle.
    mlp = 3 * 16 * 32
    assert routed.parameter_count("total") == dense.parameter_count("total") + router + 2 * mlp


class _Bank(FeedForward):
    """A router of its own, and a bank of 8 experts; a token is processed by one."""

    def __init__(self, bank: nn.Parameter) -> None:
        super().__init__()
        self.router, self.bank = nn.Parameter(torch.zeros(8, 16)), bank

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return x_BTD

    def ledger(self, workload: Workload) -> Ledger:
        return Ledger()

    def active_parameters(self) -> int:
        return self.router.numel() + self.bank.numel() // 8


@dataclass(frozen=True, kw_only=True)
class _Sharing(Router):
    """``what`` is the same in all layers."""

    what: str
    made: list[Block] = field(default_factory=list)

    def build_layer(self, model: ModelConfig, layer: int) -> Block:
        if self.made and self.what == "block":
            return self.made[0]
        bank = nn.Parameter(torch.zeros(8, 500))
        block = Block(model, layer, _Bank(bank))
        if self.made and self.what == "attention":
            block.attention = self.made[0].attention
        self.made.append(block)
        return block


@pytest.mark.parametrize(("what", "banks"), [("nothing", 6), ("block", 1), ("attention", 6)])
def test_what_is_idle_of_what_layers_share_is_idle_once(what: str, banks: int) -> None:
    _Sharing.name = "sharing"
    model = RoutedDecoder(ModelConfig(width=16, layers=6, heads=2), _Sharing(what=what))
    idle = banks * 7 * 500
    assert model.parameter_count("active") == model.parameter_count("total") - idle > 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 100, "heads": 3}, "width 100 with 3 heads"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads is 3 with 4 heads"),
        ({"layers": 0}, "layers is 0; it should be greater than or equal to 1"),
        ({"mlp": "relu"}, "model mlp is 'relu'; it should be 'swiglu' or 'gelu'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig(**fields)


@pytest.mark.parametrize("name", router_names())
def test_autocast_leaves_float64_alone(name: str) -> None:
    config = ModelConfig(vocabulary=37, width=24, layers=4, heads=2)
    model = build_model(config, build_router(name)).double().eval()
    tokens_BT = torch.arange(3 * 17).view(3, 17) % 37
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(model.loss(tokens_BT, tokens_BT, Context()))
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("targets_BT", "words"),
    [
        (
            torch.zeros(2, 5, dtype=torch.long),
            r"targets are of shape \(2, 5\) and torch.int64 for tokens of shape \(2, 6\)",
        ),
        (
            torch.zeros(6, 2, dtype=torch.long),
            r"targets are of shape \(6, 2\) and torch.int64 for tokens of shape \(2, 6\)",
        ),
        (torch.zeros(2, 6), "and torch.float32 for tokens"),
    ],
    ids=["too few", "transposed", "float"],
)
def test_a_loss_takes_one_target_of_each_token(targets_BT: Tensor, words: str) -> None:
    config = ModelConfig(vocabulary=7, width=8, layers=1, heads=2)
    model = build_model(config, build_router("vanilla"))
    tokens_BT = torch.zeros(2, 6, dtype=torch.long)
    for loss in (model.loss, model.losses):
        with pytest.raises(UserError, match=words):
            loss(tokens_BT, targets_BT, Context())
