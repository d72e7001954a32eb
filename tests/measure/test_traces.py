"""Routing over the course of training: packed decisions, those of a batch, and replaced selections."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from modbench.analysis.routing import Predictors
from modbench.measure.loss import heldout_loss
from modbench.measure.rules import rule_losses
from modbench.measure.traces import traced_point, traced_windows, traces
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.trace import Trace
from modbench.records.line import canonical_json
from modbench.records.traces import TraceArrays, Traces
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
HELDOUT_N = np.random.default_rng(0).integers(97, size=1700).astype(np.uint16)
WINDOWS_WT = traced_windows(HELDOUT_N, 100)
SCHEMES = ["mod", "token_choice", "expert_choice", "mode_staged", "mode_integrated", "threshold_skip"]


def model(name: str, **options: Any) -> Decoder:
    name, _, preset = name.partition(":")
    made = build_model(SHAPE, build_router(name, {"scores": preset} if preset else options))
    with torch.no_grad():  # so that causal rules select some tokens
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        if name == "mod" and preset == "hash":
            for layer in made.layers[1::2]:
                layer.threshold.value.fill_(0.8)
    return made


def stated(made: Decoder, earlier: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return traces(made, WINDOWS_WT, earlier, HELDOUT_N, 96)


def arrays(made: Decoder) -> TraceArrays:
    return Traces.model_validate_json(canonical_json(stated(made))).arrays()


@pytest.mark.parametrize("name", SCHEMES)
def test_traces_are_the_decisions_of_a_pass_of_any_batch(name: str) -> None:
    made = model(name).train()
    found = arrays(made)
    tokens_BT = torch.from_numpy(WINDOWS_WT[:16, :-1])
    trace = Trace(detailed=True)
    made.eval()(tokens_BT, Context(selection="causal", trace=trace))
    compared = 0
    for (layer, kind), of in found.end.items():
        shown = trace.tensors[layer, "selected" if kind == "depth" else "chosen"].numpy()
        first_N = np.arange(len(of.reached_N)) < tokens_BT.numel()
        expected = shown.reshape(-1, 1) if kind == "depth" else shown
        assert np.array_equal(of.chosen_NE[of.reached_N & first_N], expected)
        assert not of.chosen_NE[~of.reached_N].any()
        compared += of.chosen_NE.sum()
    assert compared
    targets_BT = torch.from_numpy(WINDOWS_WT[:16, 1:])
    losses_BT = made.losses(tokens_BT, targets_BT, Context(selection="causal")).numpy()
    assert np.allclose(found.losses_WT[:16], losses_BT, rtol=1e-3)
    assert found.changes_LN == []


def test_gates_documents_and_changes() -> None:
    found = arrays(model("mod"))
    trace = Trace()
    model("mod").eval()(torch.from_numpy(WINDOWS_WT[:, :-1]), Context(selection="causal", trace=trace))
    gates_N = trace.tensors[1, "gate"].flatten().detach().numpy()
    assert np.allclose(found.end[1, "depth"].gates_N, gates_N, rtol=1e-2, atol=1e-3)
    ends_N = np.concatenate(([0], HELDOUT_N == 96)).cumsum()  # before each token
    assert found.documents_WT[0].tolist() == ends_N[:100].tolist()
    assert found.documents_WT[-1, -1] == (HELDOUT_N[: 100 * len(WINDOWS_WT) - 1] == 96).sum()
    dense = arrays(model("vanilla"))
    assert dense.end == {}
    assert [change.shape for change in dense.changes_LN] == [(WINDOWS_WT[:, 1:].size,)] * 4


def test_a_point_leaves_the_model_as_it_was() -> None:
    made = model("mod:gaussian").train()
    before = {name: of.clone() for name, of in made.state_dict().items()}
    state = torch.get_rng_state()
    assert traced_point(made, WINDOWS_WT, 0.5)["share"] == 0.5
    assert made.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], of) for name, of in made.state_dict().items())


@pytest.mark.parametrize("name", ["token_choice", "mod", "mode_staged", "expert_choice"])
def test_a_run_at_the_shape_of_quick_takes_less_than_200_kilobytes(name: str) -> None:
    heldout_N = np.random.default_rng(0).integers(512, size=70_000).astype(np.uint16)
    shape = ModelConfig(vocabulary=512, width=32, layers=4, heads=2)
    made, windows_WT = build_model(shape, build_router(name, {})), traced_windows(heldout_N, 256)
    earlier = [traced_point(made, windows_WT, share) for share in (0, 0.01, 0.05, 0.1, 0.25, 0.5)]
    assert len(canonical_json(traces(made, windows_WT, earlier, heldout_N, 0))) < 200_000


DAMAGE = {
    "ids": ("losses", "AAAA"),
    "losses": ("losses", "%"),
    "first": ("first", [1]),
    "windows": ("windows", 2**20),
    "changes": ("changes", ["AAAA"]),
}


@pytest.mark.parametrize("name", [*DAMAGE, "chosen", "gates", "experts", "order", "twice"])
def test_traces_that_do_not_fit_are_refused(name: str) -> None:
    content = stated(model("token_choice"), (traced_point(model("token_choice"), WINDOWS_WT, 0.5),))
    Traces.model_validate_json(canonical_json(content))
    layer = content["points"][-1]["layers"][0]
    if name in DAMAGE:
        content[DAMAGE[name][0]] = DAMAGE[name][1]
    elif name == "order":
        content["points"].reverse()
    elif name == "twice":
        content["points"][-1]["layers"].append(layer)
    else:
        layer[name] = 10**9 if name == "experts" else layer[name][:-4]
    with pytest.raises(ValidationError):
        Traces.model_validate_json(canonical_json(content))


def test_controls_come_out_as_they_are_built() -> None:
    found = {}
    for name in ("hash", "stride", "gaussian"):
        of = arrays(model(f"mod:{name}"))
        predictors = Predictors(of.ids_WT, capacity=0.125)
        found[name] = predictors.of(1, of.end[1, "depth"].chosen_NE, of.end[1, "depth"].reached_N)[1]
    assert found["hash"]["id"] == 1
    assert found["stride"]["position"] == 1
    chance = [found["hash"]["position"], found["stride"]["id"], *found["gaussian"].values()]
    assert all(abs(area - 0.5) < 0.1 for area in chance)


@pytest.mark.parametrize(
    "name", ["mod", "token_choice", "expert_choice", "mode_staged", "threshold_skip"]
)
def test_the_scores_of_the_own_selection_keep_the_loss_and_others_do_not(name: str) -> None:
    made = model(name, **({"top_k": 1, "renormalise": False} if name == "token_choice" else {}))
    own = arrays(made)
    scores = {place: {"id": of.chosen_NE.astype(float)} for place, of in own.end.items()}
    losses = rule_losses(made, WINDOWS_WT, scores)
    assert losses["id"] == pytest.approx(losses["own"], abs=1e-4)
    assert abs(losses["random"] - losses["own"]) > 1e-4
    scored = heldout_loss(made, WINDOWS_WT[1::2], np.ones(97, dtype=int), selection="causal")
    assert losses["own"] == pytest.approx(scored.nats_per_token, rel=1e-5)


def test_a_scheme_whose_layers_take_no_decisions_from_outside_keeps_its_own() -> None:
    made = model("mixture_of_recursions")
    scores = {place: {"id": of.chosen_NE * 1.0} for place, of in arrays(made).end.items()}
    assert scores
    assert rule_losses(made, WINDOWS_WT, scores).keys() == {"own"}
    assert rule_losses(made, WINDOWS_WT, {}).keys() == {"own"}
