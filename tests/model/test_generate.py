"""Generated text: with a cache and without it the same, ragged prompts included."""

import pytest
import torch

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.generate import decode, dense_cache_bytes, generate, prefill
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, preset_options, router_class, router_names

SHAPE = ModelConfig(vocabulary=61, width=32, layers=4, heads=4, kv_heads=2, mlp_width=64)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [3, 5, 8, 9]]


def model(name: str, **options) -> Decoder:
    built = build_model(SHAPE, build_router(name, options)).train()
    built(torch.randint(61, (2, 64)), Context())
    return built.eval()


@pytest.mark.parametrize("name", ["mod", "mode_integrated"])
def test_drawn_tokens_are_the_same_with_and_without_a_cache(name: str) -> None:
    made = model(name).double()
    settings = {"new": 40, "temperature": 1.0, "seed": 7}
    with_cache = generate(made, PROMPTS, cache=Cache(3), **settings)
    assert [len(text) for text in with_cache] == [40] * 3
    assert with_cache == generate(made, PROMPTS, **settings)


SCHEMES = [
    name if preset is None else pytest.param(f"{name}:{preset}", marks=pytest.mark.full)
    for name in router_names()
    for preset in (None, *router_class(name).presets)
]


@torch.no_grad()
def without_a_cache(made: Decoder, prompt: list[int], new: int) -> list[int]:
    text = list(prompt)
    for _ in range(new):
        logits_V = made(torch.tensor([text]), Context(selection="causal"))[0, -1]
        text.append(int(logits_V.argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_writes_what_forward_passes_without_a_cache_say(scheme: str) -> None:
    name, options = preset_options(scheme)
    made = model(name, **options).double()
    alone = [without_a_cache(made, prompt, 12) for prompt in PROMPTS]
    for prompts, wanted in ((PROMPTS, alone), (PROMPTS[:1], alone[:1])):
        assert generate(made, prompts, new=12) == wanted
        assert generate(made, prompts, new=12, cache=Cache(len(prompts))) == wanted


def test_a_prompt_gives_the_same_alone_as_among_others() -> None:
    made = model("mod").double()
    together = generate(made, PROMPTS, new=30, temperature=1.0, cache=Cache(3))
    assert together == [generate(made, [p], new=30, temperature=1.0)[0] for p in PROMPTS]


def test_equal_prompts_draw_different_texts_and_any_temperature_works() -> None:
    made = model("vanilla")
    one, other = generate(made, [[3, 1], [3, 1]], new=20, temperature=1.0)
    assert one != other
    assert one == generate(made, [[3, 1]], new=20, temperature=1.0)[0]
    cold = generate(made, [[3, 1]], new=5, temperature=1e-45)
    assert cold == generate(made, [[3, 1]], new=5)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "one or more prompts"),
        ([[1], []], {}, "at least one token"),
        ([[61]], {}, "token 61 is outside the vocabulary 0 to 60"),
        ([[1]], {"new": 0}, "new is 0"),
        ([[1]], {"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_what_can_not_be_generated(prompts: list, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate(model("vanilla"), prompts, **{"new": 1, **options})


def test_a_prompt_or_token_of_another_batch_is_refused() -> None:
    made = model("mod")
    with pytest.raises(UserError, match=r"lengths_B is \[1, 3\] for 2 sequences of 2 tokens; give each"):
        prefill(made, torch.tensor([[3, 1], [4, 1]]), [1, 3])
    _, cache = prefill(made, torch.randint(61, (2, 5)))
    with pytest.raises(UserError, match="a cache of 2 sequences was given tokens of 3; give as many"):
        decode(made, torch.tensor([3, 1, 4]), cache)
    assert cache.read == [5, 5]


def test_the_cache_holds_what_was_read() -> None:
    made, cache = model("mod"), Cache(3)
    generate(made, PROMPTS, new=4, temperature=1.0, cache=cache)
    assert cache.read == [len(prompt) + 3 for prompt in PROMPTS]
    dense = dense_cache_bytes(made, sum(cache.read))
    assert dense == sum(cache.read) * 4 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, float32
    assert 0 < cache.bytes < dense
    plain, cache = model("vanilla"), Cache(3)
    generate(plain, PROMPTS, new=4, temperature=1.0, cache=cache)
    assert cache.bytes == dense
    assert dense_cache_bytes(made.double(), 1) == 2 * dense_cache_bytes(plain, 1)
