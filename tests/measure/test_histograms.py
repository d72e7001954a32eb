"""Routing histograms of numbers and of routers with known choices."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modbench.measure.histograms import KEPT_IDS, RoutingHistograms, Weights
from modbench.measure.loss import heldout_loss
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.trace import Trace
from modbench.report.routing import check_routing
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
WINDOWS_WT = np.random.default_rng(0).integers(97, size=(20, 65))
PIECES = tuple(f"<{number}>".encode() for number in range(97))


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
    histograms = RoutingHistograms(sequence=windows_WT.shape[1] - 1, pieces=PIECES)
    for rule in ("causal", "topk"):
        watch = histograms.watch(rule)
        heldout_loss(made, windows_WT, np.ones(97), selection=rule, watch=watch, batch=batch)
    found = histograms.as_dict()
    check_routing(found)
    return found


def weights(*parts: Tensor) -> dict | None:
    histogram = Weights()
    for values in parts:
        histogram.add(values, values > 0)
    return histogram.as_dict()


def test_bins_of_weights_are_the_narrowest_that_hold_all() -> None:
    found = weights(torch.tensor([-1.0, 0.25, 0.3, 8.99]))
    assert (found["exponent"], found["first"], len(found["all"])) == (-2, -4, 40)
    found = weights(torch.tensor([-1.0, 0.25, 0.3, 9.0]))
    assert (found["exponent"], found["first"], len(found["all"])) == (-1, -2, 21)
    assert {place: count for place, count in enumerate(found["all"]) if count} == {0: 1, 2: 2, 20: 1}
    assert sum(found["selected"]) == 3


def test_bins_of_weights_do_not_depend_on_order_or_batches() -> None:
    values_N = torch.randn(1000) * torch.logspace(-3, 2, 1000)
    whole = weights(values_N)
    assert sum(whole["all"]) == 1000
    assert weights(*values_N.split(7)) == weights(values_N.flip(0)) == whole


def test_equal_weights_no_weights_and_nan() -> None:
    assert weights(torch.full((3, 5), 2.5))["all"] == [15]
    assert weights() is None
    assert weights(torch.tensor([torch.nan, torch.inf])) is None
    assert weights(torch.tensor([torch.nan, 1.0]))["all"] == [1]


def test_a_dense_model_has_no_histogram() -> None:
    assert routing(model("vanilla")) == {}


def test_a_strides_positions_are_known() -> None:
    found = routing(model("mod", scores="stride", capacity=0.25))
    assert (found["windows"], found["sequence"], found["edges"]) == (20, 64, list(range(65)))
    for rule in ("causal", "topk"):
        assert [layer["layer"] for layer in found[rule]["depth"]] == [1, 3]
        for layer in found[rule]["depth"]:
            assert layer["routed"] == [20, 0, 0, 0] * 16
            # A control's gate is 1.
            assert layer["gates"]["all"] == [20 * 64]
            assert layer["gates"]["selected"] == [20 * 16]
        assert found[rule]["entered"] == [20 * 48, 0, 20 * 16]
        assert found[rule]["experts"] == []


@pytest.mark.parametrize(("tokens", "bins", "last"), [(64, 64, 1), (65, 33, 1), (200, 50, 4), (3, 3, 1)])
def test_positions_stand_in_64_bins_at_most(tokens: int, bins: int, last: int) -> None:
    found = routing(model("mod", scores="stride"), WINDOWS_WT[:2, :1].repeat(tokens + 1, 1))
    assert len(found["edges"]) == bins + 1
    assert found["edges"][-1] - found["edges"][-2] == last
    assert sum(found["causal"]["depth"][0]["routed"]) == 2 * -(-tokens // 8)


def test_tokens_are_counted_by_id() -> None:
    made = model("mod", scores="hash", capacity=0.25, every=4)
    made.layers[3].threshold.value.fill_(0.5)
    found = routing(made)
    inputs_WT = torch.from_numpy(WINDOWS_WT[:, :-1])
    context = Context(selection="causal")
    made(inputs_WT, context)
    entered_WT = context.trace.tensors[3, "selected"]
    assert found["seen"] == sorted(found["seen"], reverse=True)
    assert sum(found["seen"]) == inputs_WT.numel()
    for name, text, seen, routed in zip(
        *(found["ids"], found["texts"], found["seen"], found["causal"]["routed"]), strict=True
    ):
        assert text == f"<{name}>"
        assert seen == int((inputs_WT == name).sum())
        assert routed == int(entered_WT[inputs_WT == name].sum())
        assert routed in (0, seen)  # a hash knows the token alone


def test_bytes_that_are_no_text_are_written_out_and_ids_are_bounded() -> None:
    histograms = RoutingHistograms(sequence=600, pieces=[b"\xe2", b"\n", *[b"x"] * 600])
    tokens_BT = torch.arange(602)[None, :600]
    trace = Trace()
    trace.show(0, "selected", tokens_BT % 2 == 0)
    for rule in ("causal", "topk"):
        histograms.watch(rule)(tokens_BT, trace)
    found = histograms.as_dict()
    check_routing(found)
    assert found["ids"] == list(range(KEPT_IDS))
    assert found["texts"][:2] == ["\\xe2", "\n"]
    assert found["causal"]["depth"][0]["gates"] is None


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
        entered = sum(sum(layer["routed"]) for layer in layers)
        assert entered == sum(times * count for times, count in enumerate(found[rule]["entered"]))
        assert entered == sum(found[rule]["routed"])
        for layer in layers:
            assert sum(layer["gates"]["all"]) == 20 * 64
            assert sum(layer["gates"]["selected"]) == sum(layer["routed"])


@pytest.mark.parametrize(("name", "options"), EXPERTS)
def test_experts_of_all_schemes_show_what_they_chose(name: str, options: dict) -> None:
    made = model(name, **options)
    found = routing(made)
    for rule in ("causal", "topk"):
        layers = found[rule]["experts"]
        assert [layer["layer"] for layer in layers] == [0, 1, 2, 3]
        for layer in layers:
            assert ("by_no_op" in layer) == (name == "mode_integrated")
            choosing = name in ("expert_choice", "expert_threshold", "relu_routing")
            staged = options.get("experts_by") == "expert_choice" and layer["layer"] in (0, 2)
            assert ("taken" in layer) == (choosing or staged)
            experts = len(layer["load"])
            depth = {other["layer"]: sum(other["routed"]) for other in found[rule]["depth"]}
            tokens = depth.get(layer["layer"], 20 * 64)
            assert experts == len(made.layers[0].feed_forward.router.weight)
            assert sum(layer["scores"]["all"]) == tokens * experts
            if options.get("capacity_factor") is None or rule == "causal":
                assert sum(layer["scores"]["selected"]) == sum(layer["load"])
            else:
                assert sum(layer["scores"]["selected"]) == tokens > sum(layer["load"])


def test_choices_of_no_op_experts_are_counted_by_layer() -> None:
    found = routing(model("mode_integrated", experts=5, no_op_experts=3, top_k=2))
    for rule in ("causal", "topk"):
        for layer in found[rule]["experts"]:
            assert sum(layer["by_no_op"]) == 20 * 64
            assert sum(n * count for n, count in enumerate(layer["by_no_op"])) == sum(layer["load"][5:])


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
