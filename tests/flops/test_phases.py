"""Ledger equals counter to the integer in every phase, on values and on shapes, whatever is frozen.

B sequences, T tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modbench.errors import UserError
from modbench.flops.counter import FlopCounter
from modbench.flops.ledger import CONVENTIONS, Ledger, Load
from modbench.model.cache import Cache
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder, build_model
from modbench.model.registry import build_router

SCHEMES: dict[str, tuple[str, dict]] = {
    "vanilla": ("vanilla", {}),
    "token_choice": ("token_choice", {}),
    "token_choice-top1": ("token_choice", {"top_k": 1, "renormalise": False, "expert_width": 5}),
    "token_choice-z": ("token_choice", {"experts": 3, "top_k": 2, "z_loss": 0.1, "balance": 0.0}),
    "expert_choice": ("expert_choice", {}),
    "expert_choice-batch": ("expert_choice", {"pool": "batch", "capacity": 1.0}),
    "mod": ("mod", {}),
    "mod-aux": ("mod", {"causal": "aux_bce", "capacity": 0.4, "every": 1, "gate": "sigmoid"}),
    "mod-threshold": ("mod", {"causal": "ema_threshold", "residual": "full", "capacity": 1.0}),
    "mode_staged": ("mode_staged", {"capacity": 0.3}),
    "mode_integrated": ("mode_integrated", {"no_op_experts": 3}),
}


def entries(ledger: Ledger) -> dict:
    return {key: flops for key, flops in ledger if flops.executed}


def same(ledger: Ledger, counter: FlopCounter) -> None:
    assert entries(ledger) == entries(counter.ledger)
    for convention in CONVENTIONS:
        assert ledger.total(convention) == counter.under(convention)
    assert counter.executed == ledger.total("executed") > 0


def built(shape: ModelConfig, scheme: str, device: str = "cpu", dtype=torch.float32) -> Decoder:
    name, options = SCHEMES[scheme]
    return build_model(shape, build_router(name, options)).to(device=device, dtype=dtype)


def warmed(model: Decoder) -> Decoder:
    """Its averages moved, so that the causal rules let some in and some not."""
    model.train()(torch.randint(model.config.vocabulary, (2, 64)), Context())
    return model.eval()


def train(model: Decoder, tokens_BT: torch.Tensor, **options) -> tuple[Context, FlopCounter]:
    context = Context(**options)
    with FlopCounter() as counter:
        logits_BTV = model.train()(tokens_BT, context)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT.flatten())
        (loss + context.trace.auxiliary_loss()).backward()
    return context, counter


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_prefill_and_decode_on_values(scheme: str, dtype: torch.dtype, shape: ModelConfig) -> None:
    model = warmed(built(shape, scheme)).to(dtype)
    prompts = [31, 1, 17]
    tokens_BT = torch.randint(shape.vocabulary, (3, 31))
    cache = Cache(3)
    past = (0, 0, 0)
    for lengths, phase in ((prompts, "prefill"), ([4, 9, 2], "prefill"), ([1, 1, 1], "decode")):
        context = Context(
            selection="causal",
            cache=cache,
            lengths_B=torch.tensor(lengths) if min(lengths) < max(lengths) else None,
            logits="last",
        )
        with FlopCounter() as counter:
            model(tokens_BT[:, : max(lengths)], context)
        load = Load(
            lengths=tuple(lengths), past=past, phase=phase, padding=True, counts=context.trace.counts
        )
        same(model.ledger(load), counter)
        past = tuple(cache.read)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_phase_on_shapes_alone_costs_what_the_options_promise(
    scheme: str, dtype: torch.dtype, shape: ModelConfig
) -> None:
    model = built(shape, scheme, "meta", dtype)
    tokens_BT = torch.zeros(3, 63, dtype=torch.long, device="meta")
    for rule in ("topk", "causal"):
        with FlopCounter() as counter, torch.no_grad():
            model(tokens_BT, Context(selection=rule))
        same(model.ledger(Load.uniform(3, 63)), counter)
    _, counter = train(model, tokens_BT)
    same(model.ledger(Load.uniform(3, 63, "train")), counter)
    cache = Cache(3)
    with torch.no_grad():
        with FlopCounter() as counter:
            model(tokens_BT, Context(selection="causal", cache=cache, logits="last"))
        same(model.ledger(Load.uniform(3, 63, "prefill")), counter)
        steps = Ledger()
        for place in range(9):
            with FlopCounter() as counter:
                model(tokens_BT[:, :1], Context(selection="causal", cache=cache))
            same(model.ledger(Load.uniform(3, 1, "decode", past=63 + place)), counter)
            steps += counter.ledger
    # Nine tokens one by one are nine steps of one.
    assert entries(steps) == entries(model.ledger(Load.uniform(3, 9, "decode", past=63)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_checkpointing_executes_each_layer_once_more(
    scheme: str, device: str, shape: ModelConfig
) -> None:
    model = built(shape, scheme, device)
    tokens_BT = torch.zeros(2, 33, dtype=torch.long, device=device)
    context, counter = train(model, tokens_BT, checkpoint=True)
    load = Load(
        lengths=(33, 33),
        phase="train",
        checkpoint=True,
        counts=context.trace.counts if device == "cpu" else {},
    )
    ledger = model.ledger(load)
    same(ledger, counter)
    plain = model.ledger(dataclasses.replace(load, checkpoint=False))
    assert ledger.total("model") == plain.total("model")
    layers = Ledger({key: flops for key, flops in plain if key[0] >= 0 and key[2] == "forward"})
    assert ledger.total("executed") - plain.total("executed") == layers.total("executed")


def test_checkpointing_changes_no_gradient_and_moves_no_average_twice(shape: ModelConfig) -> None:
    tokens_BT = torch.randint(shape.vocabulary, (2, 33))
    for scheme in ("mod-threshold", "expert_choice", "mode_staged"):
        models = [built(shape, scheme) for _ in range(2)]
        for model, checkpoint in zip(models, (False, True), strict=True):
            train(model, tokens_BT, checkpoint=checkpoint)
        pairs = zip(models[0].named_parameters(), models[1].parameters(), strict=True)
        for (name, one), other in pairs:
            assert torch.equal(one.grad, other.grad), name
        for (name, one), other in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
            assert torch.equal(one, other), name


FROZEN: dict[str, Callable[[str], bool]] = {
    "embedding": lambda name: name.startswith("embedding"),
    "embedding-and-first-layer": lambda name: name.startswith(("embedding", "layers.0.")),
    "all-but-what-writes": lambda name: not name.endswith(("down.weight", "bank.down", "out.weight")),
    "all-but-the-norms": lambda name: "norm" not in name,
    "all-but-the-first-norm-and-routers": lambda name: (
        not name.endswith(("router", "layers.0.attention_norm.weight"))
    ),
    "predictors": lambda name: "predictor" in name,
    "attention": lambda name: ".attention." in name,
    "experts-up": lambda name: name.endswith(("bank.up", "up.weight")),
    "all-but-the-head": lambda name: not name.startswith(("head", "embedding")),
}


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_frozen_costs_no_gradient(scheme: str, frozen: str, shape: ModelConfig) -> None:
    model = built(shape, scheme)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not FROZEN[frozen](name))
    context, counter = train(model, torch.randint(shape.vocabulary, (2, 31)))
    same(model.ledger(Load.uniform(2, 31, "train", counts=context.trace.counts)), counter)


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
        "every": draw(st.integers(1, 3), label="every"),
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
    context, counter = train(model, tokens_BT)
    same(model.ledger(Load.uniform(sequences, tokens, "train", counts=context.trace.counts)), counter)
    model.eval()
    cache, past = Cache(sequences), 0
    for new in (tokens, 1, 1):
        context = Context(selection="causal", cache=cache, logits="last")
        with FlopCounter() as counter, torch.no_grad():
            model(tokens_BT[:, :new], context)
        phase = "decode" if past else "prefill"
        load = Load.uniform(sequences, new, phase, past, counts=context.trace.counts, padding=True)
        same(model.ledger(load), counter)
        past += new


def test_a_load_that_can_not_be_is_refused() -> None:
    for wrong, words in (
        ({"past": (1,)}, "needs 0 or more cached tokens for each of 2 sequences"),
        ({"past": (1, -1)}, "needs 0 or more cached tokens"),
        ({"past": (1, 1), "phase": "train"}, "nothing is cached in phase 'train'"),
        ({"phase": "decode", "padding": True}, "one token at a time"),
        ({"phase": "deocde"}, "did you mean 'decode'"),
    ):
        with pytest.raises(UserError, match=words):
            Load(lengths=(2, 3), **wrong)
