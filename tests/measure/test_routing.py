"""Measures of routing, on routers whose choices are known beforehand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modbench.measure.routing import routing_measures
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder, build_model
from modbench.model.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
WINDOWS_WT = np.random.default_rng(0).integers(97, size=(5, 65))


def model(name: str, **options) -> Decoder:
    return build_model(SHAPE, build_router(name, options))


def test_a_dense_model_routes_nothing() -> None:
    assert routing_measures(model("vanilla"), WINDOWS_WT) == {}


def test_a_stride_is_the_same_under_both_rules() -> None:
    measured = routing_measures(model("mod", scores="stride", capacity=0.25), WINDOWS_WT, batch=2)
    assert measured["flip_rate"] == 0
    assert measured["realised_capacity"] == 0.25
    assert measured["gate_scale"] == 1
    assert measured["causal_rule_accuracy"] == 1


@pytest.mark.parametrize("everyone", [True, False])
def test_a_causal_rule_that_knows_nothing_is_told_from_one_that_skips(everyone: bool) -> None:
    made = model("mod", capacity=0.25, causal="ema_threshold")
    made.layers[1].threshold.value.fill_(-1e9 if everyone else 1e9)
    measured = routing_measures(made, WINDOWS_WT)
    assert measured["causal_rule_base_rate"] == 0.75
    assert measured["realised_capacity"] == everyone
    assert measured["causal_rule_recall"] == everyone
    assert measured["causal_rule_accuracy"] == (0.25 if everyone else 0.75)
    assert measured["flip_rate"] == (0.75 if everyone else 0.25)
    assert measured.get("causal_rule_precision") == (0.25 if everyone else None)


def test_experts_that_nobody_chooses_are_dead() -> None:
    made = model("token_choice", experts=8, top_k=2)
    for layer in made.layers:
        torch.nn.init.zeros_(layer.feed_forward.router)  # ties go to the first two
    measured = routing_measures(made, WINDOWS_WT)
    assert measured["dead_experts"] == 2 * 6
    assert measured["expert_load_peak"] == 4
    assert measured["expert_load_entropy"] == pytest.approx(np.log(2) / np.log(8))
    assert "dropped_assignments" not in measured  # without a capacity nothing can be
    even = routing_measures(model("token_choice", experts=8, top_k=8), WINDOWS_WT)
    assert (even["expert_load_peak"], even["dead_experts"]) == (1, 0)
    assert even["expert_load_entropy"] == pytest.approx(1)


def test_the_gates_scale_is_that_of_the_layers_that_show_one() -> None:
    # Two blocks to a recursion: one gate, two layers that are skipped.
    shape = replace(SHAPE, layers=6)
    made = build_model(shape, build_router("mixture_of_recursions", {"gate_scale": 0.5}))
    torch.nn.init.zeros_(made.layers[1].router)  # sigmoid(0), and everyone enters
    assert routing_measures(made, WINDOWS_WT)["gate_scale"] == 0.25


def test_what_exceeds_an_experts_capacity_is_dropped() -> None:
    made = model("token_choice", top_k=1, renormalise=False, capacity_factor=2.0)
    for layer in made.layers:
        torch.nn.init.zeros_(layer.feed_forward.router)
    measured = routing_measures(made, WINDOWS_WT[:4])
    # All go to one of eight experts, which has room for two eighths.
    assert measured["dropped_assignments"] == 0.75


def test_tokens_that_no_expert_takes_are_counted() -> None:
    made = model("expert_choice")
    for layer in made.layers:
        layer.feed_forward.threshold.value.fill_(2.0)  # more than any probability
    assert routing_measures(made, WINDOWS_WT)["untaken_tokens"] == 1
