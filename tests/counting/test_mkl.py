"""FLOPs requested of MKL equal the counter's ``executed``: difference 0."""

import pytest
import torch
from mkl import executed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL, which is the witness"
    ),
]

ROUTERS = ["vanilla", "token_choice", "expert_choice", "mod", "mode_staged", "mode_integrated"]

MODELS = """
import torch
import torch.nn.functional as F
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig({shape})
BATCH, TOKENS = {batch}, {tokens}


def forward(name, rule):
    model = build_model(SHAPE, build_router(name)).eval()
    tokens_BT = torch.randint(SHAPE.vocabulary, (BATCH, TOKENS))

    def run():
        with torch.no_grad():
            model(tokens_BT, Context(selection=rule))
    return run


def training(name):
    model = build_model(SHAPE, build_router(name)).train()
    tokens_BT = torch.randint(SHAPE.vocabulary, (BATCH, TOKENS))

    def run():
        context = Context()
        logits_BTV = model(tokens_BT, context)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
        (loss + context.trace.auxiliary_loss()).backward()
    return run


def runs():
    torch.manual_seed(0)
    return {{
        f"{{name}} {{what}}": run
        for name in {routers}
        for what, run in (
            ("topk", forward(name, "topk")),
            ("causal", forward(name, "causal")),
            ("train", training(name)),
        )
    }}
"""

ATTENTION = """
import torch
import torch.nn.functional as F


def attention(queries, keys, causal, backward, key_heads=4):
    def run():
        q = torch.randn(2, 4, queries, 8, requires_grad=backward)
        k, v = (torch.randn(2, key_heads, keys, 8, requires_grad=backward) for _ in "kv")
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=key_heads != 4)
        if backward:
            out.sum().backward()
    return run


def runs():
    shapes = [(1, 1), (31, 31), (200, 200), (511, 513), (513, 511), (700, 1200), (767, 767), (768, 768),
              (1100, 1100), (1300, 600), (2049, 2049)]
    found = {
        f"{queries}x{keys} causal={causal} backward={back}": attention(queries, keys, causal, back)
        for queries, keys in shapes for causal in (True, False) for back in (True, False)
    }
    found["grouped"] = attention(1100, 1100, True, True, 2)
    return found
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("shape", "batch", "tokens"),
    [
        ("vocabulary=97, width=32, layers=2, heads=4, mlp_width=64", 1, 1100),
        (
            "vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp='gelu', mlp_width=80, "
            "tied_head=False",
            3,
            63,
        ),
    ],
    ids=["long", "awkward"],
)
def test_every_router_asks_mkl_for_what_is_counted(shape: str, batch: int, tokens: int) -> None:
    program = MODELS.format(shape=shape, batch=batch, tokens=tokens, routers=ROUTERS)
    found = executed(program)
    assert len(found) == 3 * len(ROUTERS)
    assert min(asked for asked, _ in found.values()) > 0
    assert {name: asked - counted for name, (asked, counted) in found.items()} == dict.fromkeys(found, 0)


def test_attention_asks_mkl_for_the_blocks_that_are_counted() -> None:
    found = executed(ATTENTION)
    assert min(asked for asked, _ in found.values()) > 0
    assert {name: asked - counted for name, (asked, counted) in found.items()} == dict.fromkeys(found, 0)
    forward, both = (found[f"1100x1100 causal=True backward={back}"][0] for back in (False, True))
    assert 2 * both == 7 * forward  # the scores once more: 1 + 2.5
