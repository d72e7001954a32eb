"""Ledger equals counter to the integer for any shape and options; and experts
spend what the dense MLP does. `test_every_scheme` has the phases of each scheme.

B sequences, T tokens.
"""

import layer_checks as checks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, preset_options, router_class

#: Schemes in which a token meets as many experts as the dense MLP is divided by, and their presets.
EXPERTS = [
    (name, preset)
    for name in ("token_choice", "expert_choice", "expert_threshold", "relu_routing")
    for preset in ("", *router_class(name).presets)
]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape_and_options(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads = draw(st.integers(1, 3), label="kv_heads")
    heads = kv_heads * draw(st.integers(1, 3), label="heads per kv head")
    shape = ModelConfig(
        vocabulary=draw(st.integers(2, 90), label="vocabulary"),
        width=heads * 2 * draw(st.integers(2, 5), label="half head width"),
        layers=draw(st.integers(1, 4), label="layers"),
        heads=heads,
        kv_heads=kv_heads,
        mlp=draw(st.sampled_from(["swiglu", "gelu"]), label="mlp"),
        mlp_width=draw(st.integers(1, 12), label="mlp"),
        tied_head=draw(st.booleans(), label="tied"),
    )
    experts = draw(st.integers(2, 5), label="experts")
    top_k = draw(st.integers(1, experts), label="top_k")
    choice = {
        "experts": experts,
        "top_k": top_k,
        "expert_width": draw(st.integers(1, 7), label="expert width"),
        "renormalise": top_k > 1,
    }
    depth = {
        "capacity": draw(st.floats(0.01, 1.0), label="capacity"),
        "every": draw(st.integers(1, min(3, shape.layers)), label="every"),
        "causal": draw(st.sampled_from(["predictor", "aux_bce", "ema_threshold"]), label="causal"),
    }
    name, options = draw(
        st.sampled_from(
            [
                ("vanilla", {}),
                ("token_choice", choice),
                (
                    "expert_choice",
                    {
                        "experts": experts,
                        "capacity": float(top_k),
                        "expert_width": choice["expert_width"],
                        "pool": draw(st.sampled_from(["sequence", "batch"])),
                    },
                ),
                ("mod", depth),
                ("mode_staged", {**choice, **depth}),
                ("mode_integrated", {**choice, "no_op_experts": draw(st.integers(1, 3))}),
            ]
        ),
        label="router",
    )
    model = build_model(shape, build_router(name, options))
    sequences, tokens = draw(st.integers(1, 4), label="B"), draw(st.integers(1, 40), label="T")
    tokens_BT = torch.randint(shape.vocabulary, (sequences, tokens))
    context, counter = checks.train(model, tokens_BT)
    checks.same(
        model.ledger(Workload.uniform(sequences, tokens, "train", counts=context.trace.counts)), counter
    )
    model.eval()
    cache, past = Cache(sequences), 0
    for new in (tokens, 1, 1):
        context = Context(selection="causal", cache=cache, logits="last")
        with FlopCounter() as counter, torch.no_grad():
            model(tokens_BT[:, :new], context)
        phase = "decode" if past else "prefill"
        workload = Workload.uniform(
            sequences, new, phase, past, counts=context.trace.counts, padding=True
        )
        checks.same(model.ledger(workload), counter)
        past += new


@pytest.mark.parametrize("width", [384, 1000, 18432])
@pytest.mark.parametrize(("name", "preset"), EXPERTS)
def test_a_preset_spends_on_its_experts_what_a_dense_mlp_does(
    name: str, preset: str, width: int
) -> None:
    shape = ModelConfig(layers=1, mlp_width=width)
    with torch.device("meta"):
        routed = build_router(*preset_options(f"{name}:{preset}" if preset else name))
        layer = routed.build_layer(shape, 0)
        dense = build_router("vanilla").build_layer(shape, 0)
    workload = Workload.uniform(2, 64, "train")  # which all experts can share
    parts = layer.ledger(workload).by_component("model")
    assert parts["experts"] + parts.get("mlp", 0) == dense.ledger(workload).by_component("model")["mlp"]
    extra = layer.feed_forward.router.weight.numel()
    assert layer.active_parameters() - extra == dense.active_parameters()
