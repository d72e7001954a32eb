"""The papers' formulas against numbers worked out by hand, and the figures that they printed."""

import re
from dataclasses import replace

import pytest
import torch
from pages.conventions import GPT2, error_table
from pages.keys import ROOT

from modbench.accounting.literature import (
    ALL_CONVENTIONS,
    FORMULAS,
    Reading,
    flops_under,
    reading,
)
from modbench.hf.families import family_ledger, family_reading
from modbench.ledger import Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder
from modbench.routing.registry import build_router

PAGE = (ROOT / "docs" / "conventions.md").read_text()
PLAIN = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
#: Grouped heads, an untied head, an odd vocabulary.
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
#: 2 layers, 6 wide, 2 heads of 2 with 1 for keys: attention 6*4 + 2 * 6*2 + 4*6 = 72 a layer. Kaplan's
#: N is 144 + 100 + 10 = 254, the head 6 * 11 = 66.
SMALL = Reading(
    layers=2,
    heads=2,
    attention_width=4,
    attention_parameters=144,
    feed_forward_parameters=100,
    router_parameters=10,
    head_parameters=66,
    vector_parameters=20,
    parameters=500,
    active_parameters=350,
)
#: 2 sequences of 3: 6 tokens, 2 * 9 pairs.
FORWARD_BY_HAND = {
    "kaplan": 2 * 254 * 6 + 2 * 2 * 4 * 18,
    "chinchilla_text": 2 * 244 * 6 + 2 * (16 + 6) * 18 + 2 * 66 * 6 + 2 * 66 * 6,
    "chinchilla_a4": 2 * 244 * 6 + 2 * (16 + 6) * 18,
    "palm": 2 * (254 + 66) * 6 + 4 * 2 * 2 * 2 * 18,
    "megatron": 2 * (144 + 100 + 66) * 6 + 4 * 2 * 4 * 18,
    "six_n": 2 * 254 * 6,
    "torchtitan": 2 * (254 + 66 + 20) * 6 + 4 * 2 * 2 * 2 * 18,
}


def papers(convention: str, shape: Reading, workload: Workload) -> int:
    return flops_under(convention, Ledger(), shape, workload)


def decoder(model: ModelConfig, router: str = "vanilla", **options: object) -> RoutedDecoder:
    with torch.device("meta"):
        return RoutedDecoder(model, build_router(router, options))


@pytest.mark.parametrize("convention", FORMULAS)
def test_a_formula_gives_what_it_gives_by_hand(convention: str) -> None:
    expected = FORWARD_BY_HAND[convention]
    assert papers(convention, SMALL, Workload.uniform(2, 3)) == expected
    assert papers(convention, SMALL, Workload.uniform(2, 3, "train")) == 3 * expected
    assert papers(convention, SMALL, Workload.uniform(2, 3, "prefill")) == expected


def test_decoding_charges_each_token_for_the_keys_it_sees() -> None:
    workload = Workload.uniform(1, 2, "decode", past=3)
    assert papers("palm", SMALL, workload) == 2 * 320 * 2 + 4 * 2 * 4 * (4 + 5)


def test_padding_is_charged_where_the_load_counts_it() -> None:
    ragged = Workload(lengths=(3, 1))
    assert papers("palm", SMALL, ragged) == 2 * 320 * 4 + 4 * 2 * 4 * (9 + 1)
    padded = replace(ragged, padding=True)
    assert papers("palm", SMALL, padded) == FORWARD_BY_HAND["palm"]


@pytest.mark.parametrize(
    ("layers", "width", "hidden", "heads", "head_width", "millions", "printed"),
    [
        (10, 640, 2560, 10, 64, 74, "1.03"),
        (24, 1280, 5120, 10, 128, 552, "1.08"),
        (40, 3584, 14336, 28, 128, 6794, "0.99"),
    ],
)
def test_chinchillas_table_a4(
    layers: int, width: int, hidden: int, heads: int, head_width: int, millions: int, printed: str
) -> None:
    sequence, vocabulary, inner = 2048, 32_000, heads * head_width
    shape = replace(
        SMALL,
        layers=layers,
        heads=heads,
        attention_width=inner,
        attention_parameters=layers * 4 * width * inner,
        feed_forward_parameters=layers * 2 * width * hidden,
        router_parameters=0,
        head_parameters=vocabulary * width,
    )
    workload = Workload.uniform(1, sequence, "train")
    parameters = 13 * layers * width**2 + vocabulary * width
    assert round(parameters / 10**6) == millions
    six_nd = 6 * parameters * sequence
    assert f"{papers('chinchilla_a4', shape, workload) / six_nd:.2f}" == printed
    assert f"{papers('chinchilla_text', shape, workload) / six_nd:.2f}" != printed


def convention_flops(model: RoutedDecoder, workload: Workload, convention: str) -> int:
    return flops_under(convention, model.ledger(workload), reading(model), workload)


def test_dense_gpt2_equals_palm_exactly() -> None:
    gpt2, sequence = decoder(GPT2.model), 1024
    parameters = 12 * 12 * 768**2 + 50_257 * 768
    assert parameters == sum(p.numel() for p in gpt2.parameters() if p.dim() == 2)
    per_token = 6 * parameters + 12 * 12 * 12 * 64 * sequence
    assert per_token * sequence == 874_944_921_600
    workload = Workload.uniform(1, sequence, "train")
    assert gpt2.ledger(workload).total("full") == per_token * sequence
    assert convention_flops(gpt2, workload, "palm") == per_token * sequence


@pytest.mark.parametrize("model", [PLAIN, AWKWARD, GPT2.model])
@pytest.mark.parametrize("phase", ["forward", "train", "decode"])
def test_palm_and_megatron_are_full_on_every_dense_model(model: ModelConfig, phase: str) -> None:
    dense, workload = decoder(model), Workload.uniform(3, 63, phase)  # type: ignore[arg-type]
    full = convention_flops(dense, workload, "full")
    assert convention_flops(dense, workload, "palm") == full
    assert convention_flops(dense, workload, "megatron") == full


def test_megatron_is_the_papers_equation_less_the_recomputed_layers() -> None:
    batch, sequence, layers, width, vocabulary = 2, 96, 3, 64, 1000
    dense = decoder(ModelConfig(vocabulary=vocabulary, width=width, layers=layers, mlp="gelu"))
    train = convention_flops(dense, Workload.uniform(batch, sequence, "train"), "megatron")
    forward = convention_flops(dense, Workload.uniform(batch, sequence), "megatron")
    logits = 2 * batch * sequence * width * vocabulary
    # 96 B s l h^2 (1 + s / 6h + V / 16 l h), multiplied out.
    paper = 96 * batch * sequence * layers * width**2
    paper += 16 * batch * sequence**2 * layers * width + 6 * batch * sequence * width * vocabulary
    assert train + forward - logits == paper


def test_papers_charge_depth_routing_as_if_every_token_entered() -> None:
    workload = Workload.uniform(2, 64)
    dense, routed = decoder(PLAIN), decoder(PLAIN, "mod")
    # Layer 1 has a router of 32 and a predictor of 16 * 32 + 16.
    extra = 2 * (32 + 16 * 32 + 16) * workload.tokens
    full = convention_flops(dense, workload, "full")
    assert convention_flops(routed, workload, "palm") == full + extra
    assert convention_flops(routed, workload, "full") < full


def matrices(shape: Reading) -> int:
    """Elements of a token's matrices between embedding and head."""
    return shape.attention_parameters + shape.feed_forward_parameters + shape.router_parameters


@pytest.mark.parametrize(
    ("router", "feed_forward", "routers"),
    [
        ("vanilla", 2 * 3 * 32 * 64, 0),
        ("token_choice", 2 * 2 * 3 * 32 * 32, 2 * 8 * 32),
        ("mod", 2 * 3 * 32 * 64, 32 + 16 * 32 + 16),
        ("mode_staged", 2 * 2 * 3 * 32 * 32, 2 * 8 * 32 + 32 + 16 * 32 + 16),
    ],
)
def test_a_reading_tells_attention_experts_and_routers_apart(
    router: str, feed_forward: int, routers: int
) -> None:
    model = decoder(PLAIN, router)
    shape = reading(model)
    assert shape.attention_parameters == 2 * 4 * 32 * 32
    assert (shape.feed_forward_parameters, shape.router_parameters) == (feed_forward, routers)
    vectors = 5 * 32
    assert shape.vector_parameters == vectors
    assert shape.active_parameters == matrices(shape) + shape.head_parameters + vectors
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert (shape.layers, shape.heads, shape.attention_width) == (2, 4, 32)


def test_a_reading_of_grouped_keys_and_an_untied_head() -> None:
    shape = reading(decoder(AWKWARD))
    assert shape.attention_width == 48
    assert shape.attention_parameters == 3 * (48 * 48 + 2 * 48 * 16 + 48 * 48)
    assert shape.feed_forward_parameters == 3 * 2 * 48 * 80
    assert shape.head_parameters == 301 * 48
    assert shape.vector_parameters == 7 * 48
    assert shape.active_parameters == matrices(shape) + 2 * shape.head_parameters + 7 * 48


def test_torchtitans_own_figure_for_a_published_model() -> None:
    """Qwen3-30B-A3B at 8,192 tokens, as torchtitan's pull request 4300 prints it. Its norms alone make
    the difference to a count of matmuls."""
    workload = Workload.uniform(1, 8192, "train")
    ledger, sizes = family_ledger(QWEN3_30B, workload), family_reading(QWEN3_30B)
    per_token = {
        name: flops_under(name, ledger, sizes, workload) / 8192
        for name in ("torchtitan", "palm", "full")
    }
    assert per_token == {"torchtitan": 37_578_559_488, "palm": 37_577_293_824, "full": 37_577_293_824}
    assert sizes.vector_parameters == 48 * (2 * 2048 + 2 * 128) + 2048


def test_every_convention_is_defined_on_the_page() -> None:
    defined = re.findall(r"^## `(\w+)`$", PAGE, re.MULTILINE)
    assert tuple(defined) == ALL_CONVENTIONS


def test_the_page_is_what_the_code_says() -> None:
    assert "\n".join(error_table()) in PAGE
