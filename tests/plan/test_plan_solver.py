"""Solved shapes spend what their ledgers state."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modbench.accounting.statement import meta_decoder
from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.layer import Layer
from modbench.model.sizes import SIZES, Size
from modbench.plan.solver import Solution, solve
from modbench.routers.mod import MixtureOfDepths
from modbench.routing import registry
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


def widened(solution: Solution, steps: int) -> ModelConfig:
    return replace(solution.model, mlp_width=solution.model.hidden + steps)


#: Step of the MLP width of each router: its experts per token.
STEP = {"token_choice:fine_grained": 8, "token_choice": 2, "expert_choice": 2, "mode_staged": 2} | {
    "mode_integrated": 2
}


@settings(deadline=None, max_examples=10)
@given(
    router=st.sampled_from(SCHEMES),
    tokens=st.integers(10**6, 10**13),
    per_token=st.floats(7.5, 10.5),
)
def test_a_fixed_number_of_tokens_uses_the_budget_and_no_more(
    router: str, tokens: int, per_token: float
) -> None:
    budget = int(tokens * 10**per_token)
    found = solve(router, {}, BASE, budget=budget, tokens=tokens)
    of_sequence = own_flops(router, found.model, BASE.sequence)
    assert found.tokens == tokens
    assert found.flops == -(-tokens * of_sequence // BASE.sequence)
    assert found.flops <= budget
    wider = own_flops(router, widened(found, STEP.get(router, 1)), BASE.sequence)
    assert tokens * wider > budget * BASE.sequence
    assert found.share >= 0.99
    assert found.flops_per_token == of_sequence / BASE.sequence


@settings(deadline=None, max_examples=10)
@given(router=st.sampled_from(SCHEMES), exponent=st.floats(15.5, 21), ratio=st.floats(1, 200))
def test_tokens_for_each_parameter_use_the_budget_to_a_sequence(
    router: str, exponent: float, ratio: float
) -> None:
    budget = int(10**exponent * ratio)
    found = solve(router, {}, BASE, budget=budget, tokens_per_parameter=ratio)
    of_sequence = own_flops(router, found.model, BASE.sequence)
    decoder = meta_decoder(router, {}, found.model)
    assert found.tokens % BASE.sequence == 0
    assert found.flops == found.tokens // BASE.sequence * of_sequence
    assert budget - of_sequence < found.flops <= budget
    assert found.parameters == decoder.parameter_count("total")
    assert found.active_parameters == decoder.parameter_count("active")
    # Of the shapes some budgets lie between, the widest MLP comes within a hundredth.
    assert found.tokens >= ratio * found.active_parameters - BASE.sequence
    assert found.tokens <= ratio * found.active_parameters * 1.011 + BASE.sequence


@pytest.mark.parametrize("router", SCHEMES)
def test_shapes_follow_the_base(router: str) -> None:
    found = solve(router, {}, SIZES["7B"], budget=10**22)
    model, base = found.model, SIZES["7B"].model
    assert model.head_width == base.head_width
    assert model.heads == 4 * model.key_heads
    assert (model.vocabulary, model.tied_head, model.mlp) == (32_000, False, "swiglu")
    assert model.width / model.layers == pytest.approx(base.width / base.layers, rel=0.15)
    assert model.hidden / model.width == pytest.approx(base.hidden / base.width, rel=0.4)


@pytest.mark.parametrize("every", [2, 3, 4])
def test_depth_routed_blocks_come_in_whole_groups(every: int) -> None:
    for budget in (10**16, 10**19, 10**22):
        found = solve("mod", {"every": every}, BASE, budget=budget)
        assert found.model.layers % every == 0


def test_routing_buys_a_larger_model() -> None:
    dense, routed = (solve(name, {}, BASE, budget=10**21) for name in ("vanilla", "mod"))
    assert routed.active_parameters > 1.2 * dense.active_parameters
    assert routed.flops_per_token < dense.flops_per_token


def test_experts_of_a_width_of_their_own_are_left_at_it() -> None:
    options = {"expert_width": 256}
    found = solve("token_choice", options, BASE, budget=10**19, tokens=10**9)
    assert found.flops == -(-(10**9) * own_flops("token_choice", found.model, 1024, **options) // 1024)
    assert 0.9 < found.share <= 1


def test_another_convention_is_solved_under_itself() -> None:
    palm, model = (
        solve("mod", {}, BASE, budget=10**20, tokens=10**9, convention=name)
        for name in ("palm", "model")
    )
    # PaLM's formula counts skipped blocks.
    assert palm.active_parameters < 0.8 * model.active_parameters


@dataclass(frozen=True, kw_only=True)
class Deepening(Router):
    """Routes the first two blocks only: no group of layers is like the next."""

    name = "deepening"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return MixtureOfDepths(every=1).build_layer(model, layer) if layer < 2 else Block(model, layer)


@dataclass(frozen=True, kw_only=True)
class Thinning(Router):
    """Routes all blocks from the eighth on."""

    name = "thinning"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return MixtureOfDepths(every=1).build_layer(model, layer) if layer > 7 else Block(model, layer)


@pytest.mark.parametrize("router", [Deepening, Thinning])
def test_a_router_whose_layers_do_not_repeat_is_solved_too(
    router: type[Router], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._registered, router.name, router)
    found = solve(router.name, {}, BASE, budget=10**20, tokens=10**9)
    assert found.model.layers > 10
    assert found.flops == -(-(10**9) * own_flops(router.name, found.model, 1024) // 1024)
    assert 0.99 <= found.share <= 1


def test_a_budget_below_the_smallest_shape_is_refused() -> None:
    for how in ({"tokens": 10**9}, {}):
        with pytest.raises(
            UserError, match=r"too small for 'mod' on .*: the smallest shape is 2 lay"
        ) as no:
            solve("mod", {}, BASE, budget=10**12, **how)  # type: ignore[arg-type]
        needed = int(float(str(no.value).split("and takes ")[1].split(" FLOPs")[0]))
        assert solve("mod", {}, BASE, budget=needed, **how).model.layers == 2  # type: ignore[arg-type]
        with pytest.raises(UserError, match="too small"):
            solve("mod", {}, BASE, budget=int(needed * 0.99), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"budget": 0}, "budget is 0; it must be 1 FLOP or more"),
        ({"budget": 10**20, "tokens": 0}, "tokens is 0; it must be 1 or more"),
        ({"budget": 10**20, "tokens_per_parameter": 0}, "tokens_per_parameter is 0; it must be above 0"),
        ({"budget": 10**20, "tokens_per_parameter": float("nan")}, "tokens_per_parameter is nan"),
        ({"budget": 10**20, "convention": "mine"}, "convention 'mine' is not known"),
    ],
)
def test_bad_arguments_are_refused(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        solve("mod", {}, BASE, **how)


def test_unknown_routers_presets_and_options_are_refused() -> None:
    for router, options in (
        ("mode", {}),
        ("mod:none", {}),
        ("mod", {"depth": 1}),
        ("mod", {"every": 0}),
    ):
        with pytest.raises(UserError):
            solve(router, options, BASE, budget=10**20)


def test_a_solution_is_a_size() -> None:
    found = solve("mod", {}, BASE, budget=10**20)
    assert found.size == Size(model=found.model, sequence=BASE.sequence)


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
    assert solve(router, options, BASE, budget=10**18).share > 0.95
