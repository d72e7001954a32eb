"""The recorded routing of a passage is that of the model."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from modbench.data.tokenizer import Tokenizer
from modbench.measure.routing import PASSAGE_TOKENS, passage_routing
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.trace import Trace
from modbench.records.line import check
from modbench.records.sections import Routing
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=257, width=32, layers=4, heads=4, mlp_width=64)
WINDOW_T = np.random.default_rng(0).integers(257, size=65)
PIECES = Tokenizer().pieces


def made(name: str, **options: Any) -> Decoder:
    return build_model(SHAPE, build_router(name, options))


def passage(model: Decoder, window_T: np.ndarray = WINDOW_T) -> dict[str, Any]:
    found = passage_routing(model, window_T, PIECES)
    rule = {"depth": [], "experts": []}
    edges = [0, len(window_T) - 1]
    routing = {"windows": 1, "sequence": edges[-1], "edges": edges, "causal": rule, "topk": rule}
    check("routing", routing | {"passage": found}, TypeAdapter(Routing))
    return found


def traced(model: Decoder, rule: Any, window_T: np.ndarray = WINDOW_T) -> dict[tuple[int, str], Any]:
    context = Context(selection=rule, trace=Trace(detailed=True))
    with torch.no_grad():
        model.eval()(torch.from_numpy(window_T[None, :-1]), context)
    return context.trace.tensors


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mod", {}),
        ("mod", {"causal": "ema_threshold"}),
        ("mode_staged", {}),
        ("threshold_skip", {}),
        ("mixture_of_recursions", {}),
    ],
)
def test_recorded_tokens_are_those_that_the_model_selects(name: str, options: dict) -> None:
    model = made(name, **options)
    found = passage(model)
    for rule in ("causal", "topk"):
        shown = traced(model, rule)
        layers = sorted(layer for layer, what in shown if what == "selected")
        assert [layer["layer"] for layer in found[rule]] == layers
        for layer in found[rule]:
            selected_T = shown[layer["layer"], "selected"][0].tolist()
            assert [mark == "1" for mark in layer["selected"]] == selected_T
    assert "1" in found["topk"][0]["selected"]


def test_recorded_gates_are_those_of_the_causal_rule_to_three_digits() -> None:
    model = made("mod")
    found, shown = passage(model), traced(model, "causal")
    for layer in found["causal"]:
        gates_T = shown[layer["layer"], "gate"][0].numpy()
        assert layer["gates"] == pytest.approx(gates_T, rel=5e-3)
        assert len(set(layer["gates"])) > 32
    assert all("gates" not in layer for layer in found["topk"])


def test_a_scheme_without_router_weights_has_no_gates() -> None:
    for options in ({"scores": "stride"}, {"scores": "gaussian"}):
        assert all("gates" not in layer for layer in passage(made("mod", **options))["causal"])


def test_gates_of_a_diverged_model_are_left_out() -> None:
    model = made("mod")
    with torch.no_grad():
        model.layers[1].router.weight.fill_(torch.nan)
    found = passage(model)
    assert "gates" not in found["causal"][0]


def test_passage_has_the_first_tokens_of_a_pass_over_the_whole_window() -> None:
    model, long_T = made("mod"), np.random.default_rng(1).integers(257, size=301)
    found = passage(model, long_T)
    assert len(found["texts"]) == PASSAGE_TOKENS == 128
    selected_T = traced(model, "topk", long_T)[1, "selected"][0]
    assert found["topk"][0]["selected"] == "".join(str(int(one)) for one in selected_T[:128])
    assert selected_T.sum() == 38  # ceil(300 / 8): the capacity of the window, not of the passage


def test_texts_are_those_of_the_tokens() -> None:
    window_T = np.array([ord("a"), ord("\n"), 0xE2, 256, ord("b"), ord("c")])
    assert passage(made("mod"), window_T)["texts"] == ["a", "\n", "\\xe2", "", "b"]


def test_first_choices_are_the_experts_with_the_largest_gates() -> None:
    model = made("token_choice")
    found, shown = passage(model), traced(model, "causal")
    assert [layer["layer"] for layer in found["experts"]] == [0, 1, 2, 3]
    for layer in found["experts"]:
        assert layer["first"] == shown[layer["layer"], "weights"].argmax(1).tolist()


def test_a_token_whose_choices_are_all_no_op_experts_has_no_first_choice() -> None:
    model = made("mode_integrated")
    found, shown = passage(model), traced(model, "causal")
    idle = 0
    for layer in found["experts"]:
        skipped_N = (shown[layer["layer"], "weights"] == 0).all(1).tolist()
        assert [first == -1 for first in layer["first"]] == skipped_N
        idle += sum(skipped_N)
    assert 0 < idle < 4 * 64


@pytest.mark.parametrize(
    ("name", "layers"), [("expert_choice", []), ("relu_routing", []), ("mode_staged", [0, 2])]
)
def test_layers_in_which_not_every_token_chooses_have_no_first_choices(name: str, layers: list) -> None:
    assert [layer["layer"] for layer in passage(made(name))["experts"]] == layers
