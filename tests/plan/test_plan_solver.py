"""Solved shapes spend what their ledgers state."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.layer import Layer
from modbench.model.sizes import SIZES
from modbench.plan.solver import solve
from modbench.routers.mod import MixtureOfDepths
from modbench.routing import registry
from modbench.routing.build import meta_decoder
from modbench.routing.router import Router

SCHEMES = (
    "vanilla",
    "token_choice",
    "token_choice:fine_grained",
    "expert_choice",
    "mod",
    "mod:half",
    "mode_staged",
    "mode_integrated",
)
BASE = SIZES["124M"]


def own_flops(router: str, model: ModelConfig, sequence: int, **options: Any) -> int:
    """Training FLOPs of one sequence, by the ledger of the whole decoder."""
    load = Workload.uniform(1, sequence, "train")
    return meta_decoder(router, options, model).ledger(load).total("model")


@settings(deadline=None, max_examples=4, derandomize=True)
@given(router=st.sampled_from(SCHEMES), exponent=st.floats(15.5, 21), ratio=st.floats(1, 200))
def test_tokens_for_each_parameter_use_the_budget_to_a_sequence(
    router: str, exponent: float, ratio: float
) -> None:
    budget = int(10**exponent * ratio)
    found = solve(router, {}, BASE, budget=budget, tokens_per_parameter=ratio)
    of_sequence = own_flops(router, found.model, BASE.sequence)
    active = meta_decoder(router, {}, found.model).parameter_count("active")
    assert found.tokens % BASE.sequence == 0
    assert found.flops == found.tokens // BASE.sequence * of_sequence
    assert budget - of_sequence < found.flops <= budget
    assert found.parameters == meta_decoder(router, {}, found.model).parameter_count("total")
    # Of the shapes some budgets lie between, the widest MLP comes within a hundredth.
    assert found.tokens >= ratio * active - BASE.sequence
    assert found.tokens <= ratio * active * 1.011 + BASE.sequence


@pytest.mark.parametrize("router", ["vanilla", "mode_staged"])
def test_shapes_follow_the_base(router: str) -> None:
    found = solve(router, {}, SIZES["7B"], budget=10**22)
    model, base = found.model, SIZES["7B"].model
    assert model.head_width == base.head_width
    assert model.heads == 4 * model.key_heads
    assert (model.vocabulary, model.tied_head, model.mlp) == (32_000, False, "swiglu")
    assert model.width / model.layers == pytest.approx(base.width / base.layers, rel=0.15)
    assert model.hidden / model.width == pytest.approx(base.hidden / base.width, rel=0.4)


@pytest.mark.parametrize("every", [3, 4])
def test_depth_routed_blocks_come_in_whole_groups(every: int) -> None:
    for budget in (10**16, 10**19):
        found = solve("mod", {"every": every}, BASE, budget=budget)
        assert found.model.layers % every == 0


def active_parameters(router: str, **how: Any) -> int:
    found = solve(router, {}, BASE, **how)
    return meta_decoder(router, {}, found.model).parameter_count("active")


def test_routing_buys_a_larger_model() -> None:
    dense, routed = (active_parameters(name, budget=10**20) for name in ("vanilla", "mod"))
    assert routed > 1.2 * dense


def test_experts_of_a_width_of_their_own_are_left_at_it() -> None:
    options = {"expert_width": 256}
    found = solve("token_choice", options, BASE, budget=10**19)
    of_sequence = own_flops("token_choice", found.model, 1024, **options)
    assert found.flops == found.tokens // 1024 * of_sequence
    assert 0.9 * 10**19 < found.flops <= 10**19


@dataclass(frozen=True, kw_only=True)
class Thinning(Router):
    """Routes all blocks from the eighth on."""

    name = "thinning"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return MixtureOfDepths(every=1).build_layer(model, layer) if layer > 7 else Block(model, layer)


def test_a_router_whose_layers_do_not_repeat_is_solved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, "thinning", Thinning)
    found = solve("thinning", {}, SIZES["1M"], budget=10**17)
    sequence = SIZES["1M"].sequence
    assert found.model.layers > 10
    assert found.flops == found.tokens // sequence * own_flops("thinning", found.model, sequence)
    assert 0.99 * 10**17 <= found.flops <= 10**17


@pytest.mark.parametrize(
    ("router", "options", "layers"),
    [("mod", {"first_dense": 3}, 4), ("mod", {"every": 5}, 5), ("threshold_skip", {"every": 3}, 3)],
    ids=str,
)
def test_the_smallest_shape_is_deep_enough_to_route(
    router: str, options: dict[str, Any], layers: int
) -> None:
    with pytest.raises(UserError, match=f"the smallest shape is {layers} layers"):
        solve(router, options, BASE, budget=1)
    assert solve(router, options, BASE, budget=10**18).flops > 0.95 * 10**18
