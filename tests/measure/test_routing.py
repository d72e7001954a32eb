"""Routing metrics of routers with known choices."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from modbench.analysis.idle_layers import is_idle
from modbench.ledger import Workload
from modbench.measure.routing import layer_measures, routing_measures
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.layer import Layer
from modbench.records.metrics import METRICS
from modbench.routing.build import build_model, outline
from modbench.routing.registry import build_router, router_class, router_names

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
WINDOWS_WT = np.random.default_rng(0).integers(97, size=(5, 65))


def model(name: str, **options) -> Decoder:
    return build_model(SHAPE, build_router(name, options))


def test_a_dense_model_routes_nothing() -> None:
    assert routing_measures(model("vanilla"), WINDOWS_WT) == {}


@pytest.mark.parametrize("selects_all", [True, False])
def test_causal_rules_that_select_all_or_no_tokens(selects_all: bool) -> None:
    made = model("mod", capacity=0.25, causal="ema_threshold")
    made.layers[1].threshold.value.fill_(-1e9 if selects_all else 1e9)
    measured = routing_measures(made, WINDOWS_WT)
    assert measured["causal_rule_base_rate"] == 0.75
    assert measured["realised_capacity"] == selects_all
    assert measured["causal_rule_recall"] == selects_all
    assert measured["causal_rule_accuracy"] == (0.25 if selects_all else 0.75)
    assert measured["flip_rate"] == (0.75 if selects_all else 0.25)
    assert measured.get("causal_rule_precision") == (0.25 if selects_all else None)


@pytest.mark.parametrize(
    ("name", "options", "nominal"),
    [
        ("mod", {"capacity": 0.25}, 0.25),
        ("mod", {"capacity": 0.2, "every": 1}, 13 / 64),  # rounded up
        ("threshold_skip", {"target": 0.5}, 0.5),  # no exact count, but an expected one
        ("mixture_of_recursions", {"recursions": 2}, 0.5),
        ("vanilla", {}, None),
        ("token_choice", {}, None),
    ],
)
def test_nominal_capacity_is_what_the_options_state(
    name: str, options: dict, nominal: float | None
) -> None:
    shape = replace(SHAPE, layers=4)
    made = build_model(shape, build_router(name, options))
    measured = routing_measures(made, WINDOWS_WT, batch=2)
    assert measured.get("nominal_capacity") == nominal
    assert ("realised_capacity" in measured) == ("nominal_capacity" in measured)


@pytest.mark.parametrize(
    ("name", "options", "nominal"),
    [
        ("expert_choice", {"capacity": 1.0}, 1.0),
        ("expert_threshold", {"capacity": 1.0}, 1.0),
        ("relu_routing", {"active_experts": 2}, 2.0),
        ("mode_staged", {"capacity": 0.25}, None),  # tokens choose its experts
    ],
)
def test_nominal_experts_per_token_are_what_the_options_state_where_experts_choose(
    name: str, options: dict, nominal: float | None
) -> None:
    measured = routing_measures(model(name, **options), WINDOWS_WT)
    assert measured.get("expert_nominal_capacity") == nominal
    assert ("expert_realised_capacity" in measured) == ("expert_nominal_capacity" in measured)


PRESETS = [(name, preset) for name in router_names() for preset in ("", *router_class(name).presets)]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_the_expected_counts_are_those_of_the_ledger(name: str, preset: str) -> None:
    shape = replace(SHAPE, layers=4, mlp_width=1152)
    made = outline(shape, build_router(name, router_class(name).presets.get(preset)))
    workload = Workload(lengths=(63, 17))
    expected = made.expected_counts(workload)
    assert made.ledger(replace(workload, counts=expected)) == made.ledger(workload)
    halved = {key: tuple(count // 2 for count in counts) for key, counts in expected.items()}
    fewer = made.ledger(replace(workload, counts=halved))
    assert (fewer == made.ledger(workload)) == (name == "vanilla")


def test_a_layer_that_states_no_expected_count_has_no_nominal_capacity() -> None:
    class EveryThird(Layer):
        """Processes every third token and says so in the trace."""

        def __init__(self) -> None:
            super().__init__()
            self.block = Block(SHAPE, 0)

        def forward(self, x_BTD, context):
            selected_BT = torch.zeros(x_BTD.shape[:2], dtype=torch.bool)
            selected_BT[:, ::3] = True
            context.trace.show(0, "selected", selected_BT)
            context.trace.count(0, "depth", selected_BT.sum(1).tolist())
            out_BTD = x_BTD.clone()
            out_BTD[:, ::3] = self.block(x_BTD[:, ::3], context)
            return out_BTD

    made = Decoder(SHAPE, [EveryThird(), Block(SHAPE, 1)])
    measured = routing_measures(made, WINDOWS_WT)
    assert measured["realised_capacity"] == 22 / 64
    assert "nominal_capacity" not in measured


def test_experts_without_tokens_are_dead() -> None:
    made = model("token_choice", experts=8, top_k=2)
    for layer in made.layers:
        torch.nn.init.zeros_(layer.feed_forward.router.weight)  # ties go to the first two
    measured = routing_measures(made, WINDOWS_WT)
    assert measured["dead_experts"] == 2 * 6
    assert measured["expert_load_peak"] == 4
    assert measured["expert_load_entropy"] == pytest.approx(np.log(2) / np.log(8))
    assert "dropped_assignments" not in measured  # without a capacity nothing can be
    even = routing_measures(model("token_choice", experts=8, top_k=8), WINDOWS_WT)
    assert (even["expert_load_peak"], even["dead_experts"]) == (1, 0)
    assert even["expert_load_entropy"] == pytest.approx(1)


@torch.no_grad()
def test_what_a_layer_adds_is_relative_to_the_stream_of_the_selected_tokens() -> None:
    made = model("mod", scores="stride", capacity=0.25)
    (found,) = layer_measures(made, WINDOWS_WT, batch=2)
    assert (found["layer"], found["gate_scale"]) == (1, 1)
    tokens_BT, context = torch.from_numpy(WINDOWS_WT[:, :-1]), Context(selection="causal")
    x_BTD = made.layers[0](made.embedding(tokens_BT), context)
    y_BTD = made.layers[1](x_BTD, context)
    selected_BT = context.trace.tensors[1, "selected"]
    share_BT = (y_BTD - x_BTD).norm(dim=-1) / x_BTD.norm(dim=-1)
    assert found["added"] == pytest.approx(share_BT[selected_BT].mean().item(), rel=1e-5)
    assert 0 < share_BT.mean() < found["added"] / 2  # three of four tokens skip


def test_a_gate_of_nearly_nothing_makes_an_idle_layer() -> None:
    made = model("mod", capacity=0.25, causal="ema_threshold", gate="sigmoid")
    made.layers[1].threshold.value.fill_(-1e9)  # selects all tokens
    (found,) = layer_measures(made, WINDOWS_WT)
    assert not is_idle(found["added"])
    scaled = made.layers[1].router.register_forward_hook(lambda of, given, scores: scores - 7)
    (idle,) = layer_measures(made, WINDOWS_WT)
    scaled.remove()
    assert is_idle(idle["added"])
    assert idle["gate_scale"] == pytest.approx(1 / (1 + math.exp(7)), rel=0.2)
    made.layers[1].threshold.value.fill_(1e9)  # selects none
    assert layer_measures(made, WINDOWS_WT) == [{"layer": 1, "added": 0.0}]


@torch.no_grad()
def test_experts_add_their_output_and_not_that_of_attention() -> None:
    made = model("token_choice")
    found = layer_measures(made, WINDOWS_WT)
    assert [entry["layer"] for entry in found] == [0, 1]
    assert not any("gate_scale" in entry for entry in found)
    made.layers[1].feed_forward.bank.down.zero_()
    assert layer_measures(made, WINDOWS_WT)[1] == {"layer": 1, "added": 0.0}


def test_a_layer_that_shows_nothing_selects_what_it_changes() -> None:
    class Third(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(SHAPE, 1)

        def forward(self, x_BTD: torch.Tensor, context: Context) -> torch.Tensor:
            keep_T = torch.arange(x_BTD.shape[1]) % 3 > 0
            return x_BTD * torch.where(keep_T, 1.0, 1.5)[:, None]

    made = model("vanilla")
    made.layers[1] = Third()
    assert layer_measures(made, WINDOWS_WT) == [{"layer": 1, "added": pytest.approx(0.5)}]


def test_gates_are_measured_at_the_depths_that_show_them() -> None:
    # Two blocks to a recursion: one gate, two layers that are skipped; one layer computes all.
    shape = replace(SHAPE, layers=6)
    made = build_model(shape, build_router("mixture_of_recursions", {"gate_scale": 0.5}))
    torch.nn.init.zeros_(made.layers[1].router)  # sigmoid(0), so all tokens are selected
    found = {entry.pop("layer"): entry for entry in layer_measures(made, WINDOWS_WT)}
    assert [*found] == [1, 3]
    assert found[3] == {"gate_scale": 0.25}
    assert found[1]["added"] > 0


def test_what_exceeds_an_experts_capacity_is_dropped() -> None:
    made = model("token_choice", top_k=1, renormalise=False, capacity_factor=2.0)
    for layer in made.layers:
        torch.nn.init.zeros_(layer.feed_forward.router.weight)
    measured = routing_measures(made, WINDOWS_WT[:4])
    # All go to one of eight experts, which has room for two eighths.
    assert measured["dropped_assignments"] == 0.75


def test_tokens_that_no_expert_takes_are_counted() -> None:
    made = model("expert_choice")
    for layer in made.layers:
        layer.feed_forward.router.threshold.value.fill_(2.0)  # more than any probability
    assert routing_measures(made, WINDOWS_WT)["untaken_tokens"] == 1


EXPERT_MEASURES = {
    "expert_flip_rate",
    "expert_realised_capacity",
    "expert_gate_scale",
    "no_op_choices",
    "no_op_tokens",
    "untaken_tokens",
}
CHOOSING = {"expert_flip_rate", "expert_realised_capacity", "expert_gate_scale", "untaken_tokens"}


@pytest.mark.parametrize(
    ("name", "options", "held"),
    [
        ("mod", {}, set()),
        ("token_choice", {}, {"expert_gate_scale"}),
        ("mode_integrated", {}, {"expert_gate_scale", "no_op_choices", "no_op_tokens"}),
        ("expert_choice", {}, CHOOSING),
        ("relu_routing", {}, CHOOSING),
        ("mode_staged", {"experts_by": "expert_choice"}, CHOOSING),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_scheme_has_the_measures_that_mean_something_in_it(
    name: str, options: dict, held: set[str]
) -> None:
    made = build_model(replace(SHAPE, layers=4), build_router(name, options))
    measured = routing_measures(made, WINDOWS_WT)
    assert measured.keys() & EXPERT_MEASURES == held
    assert all(math.isfinite(value) for value in measured.values())
    assert set(measured) <= set(METRICS)


def test_a_threshold_that_lets_all_in_differs_from_the_experts_top_tokens() -> None:
    made = model("expert_choice", experts=8, capacity=2.0)
    for layer in made.layers:
        torch.nn.init.zeros_(layer.feed_forward.router.weight)
        layer.feed_forward.router.threshold.value.fill_(0.0)
    measured = routing_measures(made, WINDOWS_WT)
    assert measured["expert_realised_capacity"] == 8
    assert measured["expert_flip_rate"] == 0.75  # each took a quarter of the tokens in training
    assert measured["expert_gate_scale"] == pytest.approx(1)  # eight times an eighth
    assert measured["untaken_tokens"] == 0
    for layer in made.layers:
        layer.feed_forward.router.threshold.value.fill_(2.0)
    measured = routing_measures(made, WINDOWS_WT)
    assert (measured["expert_realised_capacity"], measured["expert_flip_rate"]) == (0, 0.25)
    assert "expert_gate_scale" not in measured  # nothing had a weight


@pytest.mark.parametrize("scaling", [1.0, 2.5])
def test_the_experts_scale_is_what_their_gates_add_up_to(scaling: float) -> None:
    assert routing_measures(model("token_choice", scaling=scaling), WINDOWS_WT)[
        "expert_gate_scale"
    ] == pytest.approx(scaling)
    options = {"renormalise": False, "scaling": scaling, "experts": 8, "top_k": 2}
    made = model("token_choice", **options)
    for layer in made.layers:
        torch.nn.init.zeros_(layer.feed_forward.router.weight)
    measured = routing_measures(made, WINDOWS_WT)
    assert measured["expert_gate_scale"] == pytest.approx(scaling * 2 / 8)


def test_choices_of_no_op_experts_are_counted() -> None:
    made = model("mode_integrated", experts=4, no_op_experts=4, top_k=2, bias_step=0.01)
    first, second = (layer.feed_forward for layer in made.layers)
    for part, best in ((first, (3, 4)), (second, (6, 7))):
        torch.nn.init.zeros_(part.router.weight)
        part.router.bias.value[list(best)] = 9.0
    measured = routing_measures(made, WINDOWS_WT)
    assert measured["no_op_choices"] == 0.75
    assert measured["no_op_tokens"] == 0.5
    # In the first layer one of two equal gates is a working expert's, in the second none is.
    assert measured["expert_gate_scale"] == pytest.approx(0.5)


def test_recursions_are_judged_on_candidates_only() -> None:
    shape = replace(SHAPE, layers=5)
    made = build_model(shape, build_router("mixture_of_recursions", {"recursions": 3}))
    torch.nn.init.zeros_(made.layers[1].router)  # the causal rule lets all go on
    measured = routing_measures(made, WINDOWS_WT)
    # Of 64 tokens 43 go on, and of these 22.
    assert measured["causal_rule_base_rate"] == pytest.approx(1 - 65 / 107)
    assert measured["causal_rule_accuracy"] == pytest.approx(65 / 107)
    assert measured["causal_rule_precision"] == pytest.approx(65 / 107)
    assert measured["causal_rule_recall"] == 1
    by_token = {"recursions": 3, "depth": "token_choice"}
    made = build_model(shape, build_router("mixture_of_recursions", by_token))
    assert "causal_rule_accuracy" not in routing_measures(made, WINDOWS_WT)
