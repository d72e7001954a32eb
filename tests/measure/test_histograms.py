"""Routing histograms of numbers and of routers with known choices."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from modbench.measure.histograms import WEIGHT_BINS, RoutingHistograms, Weights
from modbench.measure.loss import heldout_loss
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.trace import Trace
from modbench.records.line import check
from modbench.records.sections import Routing
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
WINDOWS_WT = np.random.default_rng(0).integers(97, size=(20, 65))


def full(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.full)


EXPERTS = [
    ("token_choice", {}),
    full("token_choice", {"affinity": "sigmoid", "bias_step": 0.1}),
    ("token_choice", {"top_k": 1, "renormalise": False, "capacity_factor": 1.0}),
    ("expert_choice", {}),
    full("expert_choice", {"pool": "batch"}),
    full("expert_threshold", {}),
    ("relu_routing", {}),
    ("mode_integrated", {}),
    full("mode_staged", {}),
    ("mode_staged", {"experts_by": "expert_choice"}),
]


def model(name: str, **options) -> Decoder:
    return build_model(SHAPE, build_router(name, options))


def routing(made: Decoder, windows_WT: np.ndarray = WINDOWS_WT, batch: int = 16) -> dict:
    histograms = RoutingHistograms(sequence=windows_WT.shape[1] - 1)
    for rule in ("causal", "topk"):
        watch = histograms.watch(rule)
        heldout_loss(made, windows_WT, np.ones(97), selection=rule, watch=watch, batch=batch)
    found = histograms.as_dict()
    if found:
        check("routing", found, TypeAdapter(Routing))
    return found


def test_a_strides_positions_are_known() -> None:
    found = routing(model("mod", scores="stride", capacity=0.25))
    assert (found["windows"], found["sequence"], found["edges"]) == (20, 64, list(range(65)))
    for rule in ("causal", "topk"):
        assert [layer["layer"] for layer in found[rule]["depth"]] == [1, 3]
        for layer in found[rule]["depth"]:
            assert layer["routed"] == [20, 0, 0, 0] * 16
        assert found[rule]["experts"] == []


@pytest.mark.parametrize(("tokens", "bins", "last"), [(64, 64, 1), (65, 33, 1), (200, 50, 4), (3, 3, 1)])
def test_positions_stand_in_64_bins_at_most(tokens: int, bins: int, last: int) -> None:
    found = routing(model("mod", scores="stride"), WINDOWS_WT[:2, :1].repeat(tokens + 1, 1))
    assert len(found["edges"]) == bins + 1
    assert found["edges"][-1] - found["edges"][-2] == last
    assert sum(found["causal"]["depth"][0]["routed"]) == 2 * -(-tokens // 8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mod", {}),
        full("mod", {"gate": "sigmoid", "causal": "aux_bce"}),
        full("mode_staged", {}),
        ("threshold_skip", {}),
        full("mixture_of_recursions", {}),
        ("mixture_of_recursions", {"depth": "token_choice"}),
    ],
)
def test_depth_routed_layers_agree_with_themselves(name: str, options: dict) -> None:
    found = routing(model(name, **options))
    for rule in ("causal", "topk"):
        layers = found[rule]["depth"]
        assert layers
        for layer in layers:
            assert 0 < sum(layer["routed"]) <= 20 * 64


def test_bins_of_weights_are_the_narrowest_that_suffice() -> None:
    values = torch.tensor([-0.3, 0.0, 0.26, 0.9, torch.nan, torch.inf])
    weights = Weights()
    weights.add(values, values > 0.2)
    found = weights.as_dict()
    width = 2.0 ** found["exponent"]
    assert width == 1 / 32  # 1/64 would need 77 bins
    counts = dict(zip(np.arange(len(found["all"])) + found["first"], found["all"], strict=True))
    assert {place: count for place, count in counts.items() if count} == {-10: 1, 0: 1, 8: 1, 28: 1}
    assert (sum(found["all"]), sum(found["selected"])) == (4, 2)
    assert len(found["all"]) <= WEIGHT_BINS


def test_histogram_of_weights_does_not_depend_on_their_order() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).exp()
    found = []
    for order in (values, values.flip(0)):
        weights = Weights()
        for part in order.split(77):
            weights.add(part, part > 1)
        found.append(weights.as_dict())
    assert found[0] == found[1]
    assert sum(found[0]["all"]) == 500


@pytest.mark.parametrize("name", ["mod", "mode_staged"])
def test_router_weights_are_counted_once_per_token(name: str) -> None:
    found = routing(model(name))
    for rule in ("causal", "topk"):
        for layer in found[rule]["depth"]:
            assert sum(layer["gates"]["all"]) == 20 * 64
            assert sum(layer["gates"]["selected"]) == sum(layer["routed"])


@pytest.mark.parametrize(("name", "options"), EXPERTS)
def test_experts_of_all_schemes_show_their_load(name: str, options: dict) -> None:
    made = model(name, **options)
    found = routing(made)
    for rule in ("causal", "topk"):
        layers = found[rule]["experts"]
        assert [layer["layer"] for layer in layers] == [0, 1, 2, 3]
        for layer in layers:
            assert len(layer["load"]) == len(made.layers[0].feed_forward.router.weight)
            assert sum(layer["load"]) > 0


@pytest.mark.parametrize(
    ("name", "options", "among"),
    [
        ("token_choice", {}, 2),  # a token's experts
        ("mode_integrated", {}, 2),
        ("expert_choice", {}, 1),  # an expert's tokens, out of a sequence
        ("expert_choice", {"pool": "batch"}, (0, 1)),
        ("expert_threshold", {}, (0, 1)),
        ("relu_routing", {}, (0, 1)),
    ],
)
@pytest.mark.parametrize("rule", ["topk", "causal"])
def test_scores_agree_with_the_choices(
    name: str, options: dict, among: int | tuple[int, int], rule: str
) -> None:
    tokens_BT = torch.from_numpy(WINDOWS_WT[:3])
    context = Context(selection=rule, trace=Trace(detailed=True))
    model(name, **options)(tokens_BT, context)
    for layer in range(4):
        scores, chosen = (
            context.trace.tensors[layer, shown].view(*tokens_BT.shape, -1)
            for shown in ("scores", "chosen")
        )
        lowest = scores.masked_fill(~chosen, torch.inf).amin(among)
        highest = scores.masked_fill(chosen, -torch.inf).amax(among)
        assert chosen.any()
        assert (lowest >= highest).all()
