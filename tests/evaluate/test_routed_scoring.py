"""Routed models as language models: scores do not depend on the batch or on the shared prefix, and text
comes from the cache as without it."""

import random
from dataclasses import replace

import pytest
import torch
from lm_eval.api.instance import Instance
from local_tasks import request as asked

from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError
from modbench.evaluate.routed_lm import RoutedLM
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.generate import generate
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=257, width=32, layers=4, heads=4, mlp_width=64)
SCHEMES = [
    ("vanilla", {}),
    ("token_choice", {}),
    ("expert_choice", {}),
    ("expert_threshold", {}),
    ("mod", {"causal": "ema_threshold", "capacity": 0.5}),
    ("mod", {"causal": "predictor", "capacity": 0.5}),
    ("mode_staged", {}),
    ("mode_integrated", {}),
    ("mixture_of_recursions", {}),
    ("threshold_skip", {}),
    ("relu_routing", {}),
]


def model_of(name: str, options: dict, scale: float = 1.0) -> RoutedDecoder:
    """Random weights, and thresholds of a training pass."""
    model = build_model(SHAPE, build_router(name, options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model.train()
    model(torch.randint(257, (4, 48), generator=torch.Generator().manual_seed(3)), Context())
    return model.eval()


def items(count: int = 24) -> list[Instance]:
    """Choices of one to nine tokens after shared contexts, and contexts with one continuation."""
    rng = random.Random(0)

    def text(most: int) -> str:
        return "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(1, most))) + "x"

    found = []
    for number in range(count):
        context = text(40)
        found += [asked(context, " " + text(8)) for _ in range(1 if number % 4 == 0 else 4)]
    return found


@pytest.mark.parametrize(
    "batches", [(7, "auto"), pytest.param((1, 32), marks=pytest.mark.full)], ids=str
)
@pytest.mark.parametrize(("name", "options"), SCHEMES, ids=lambda value: str(value))
def test_batch_size_and_shared_prefix_change_no_score(name, options, batches):
    model, requests = model_of(name, options), items()
    alone = RoutedLM(model, Tokenizer(), sequence=64, batch=1, reuse=False).loglikelihood(requests)
    for batch in batches:
        lm = RoutedLM(model, Tokenizer(), sequence=64, batch=batch)
        scores = lm.loglikelihood(requests)
        assert lm.reuses
        expected = pytest.approx([total for total, _ in alone], abs=1e-5, rel=0)
        assert [total for total, _ in scores] == expected


@pytest.mark.parametrize(("name", "options"), SCHEMES, ids=lambda value: str(value))
def test_scores_are_exact_in_double_precision(name, options):
    # Large weights: each routing decision changes the logits a lot.
    model, requests = model_of(name, options, scale=3.0).double(), items(12)
    alone = RoutedLM(model, Tokenizer(), sequence=64, batch=1, reuse=False).loglikelihood(requests)
    together = RoutedLM(model, Tokenizer(), sequence=64).loglikelihood(requests)
    expected = pytest.approx([total for total, _ in alone], abs=1e-9, rel=0)
    assert [total for total, _ in together] == expected


def test_a_shared_prefix_is_read_once():
    model = model_of("vanilla", {})
    requests = [asked("a" * 30, " " + choice * 5) for choice in "bcde"]
    shared, plain = RoutedLM(model, Tokenizer()), RoutedLM(model, Tokenizer(), reuse=False)
    shared.loglikelihood(requests)
    plain.loglikelihood(requests)
    assert shared.cost.tokens == 30 + 4 * 5
    assert plain.cost.tokens == 4 * (30 + 5)
    assert 0 < shared.cost.nominal_flops < plain.cost.nominal_flops / 2


@pytest.mark.parametrize("forgetful", [False, True])
def test_the_cost_of_a_task_does_not_depend_on_those_before_it(forgetful):
    model = (Forgetful if forgetful else RoutedDecoder)(SHAPE, build_router("mod", {"capacity": 0.5}))
    model.initialise(0)
    lm, costs = RoutedLM(model, Tokenizer()), []
    for _ in range(2):
        lm.reset()
        lm.loglikelihood(items())
        costs.append(replace(lm.cost, seconds=0))
        assert lm.cost.seconds > 0
    assert costs[0] == costs[1]
    assert lm.reuses is not forgetful


class Forgetful(RoutedDecoder):
    """A model whose layers do not read the cache."""

    def hidden(self, tokens_BT, context):
        context.cache, cache = None, context.cache
        x_BTD = super().hidden(tokens_BT, context)
        if cache is not None:
            cache.advance(context.lengths(x_BTD))
        return x_BTD


def test_a_model_that_ignores_its_cache_is_scored_without():
    model = Forgetful(SHAPE, build_router("vanilla", {}))
    model.initialise(0)
    lm, plain = RoutedLM(model, Tokenizer()), RoutedLM(model, Tokenizer(), reuse=False)
    requests = items()
    scores, expected = lm.loglikelihood(requests), plain.loglikelihood(requests)
    assert not lm.reuses
    assert [total for total, _ in scores] == pytest.approx([total for total, _ in expected], abs=1e-5)


def test_the_training_rule_scores_otherwise_and_says_so():
    model = model_of("mod", {"causal": "ema_threshold", "capacity": 0.25})
    causal, topk = (RoutedLM(model, Tokenizer(), rule=rule) for rule in ("causal", "topk"))
    requests = items()
    scores = [[total for total, _ in lm.loglikelihood(requests)] for lm in (causal, topk)]
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
    assert causal.get_model_info()["selection_rule"] == "causal"
    assert topk.get_model_info()["selection_rule"] == "topk (non-causal)"
    with pytest.raises(UserError, match="generates text needs the causal rule"):
        topk.generate_until([asked("abc", {"until": []}, kind="generate_until")])


def test_share_of_tokens_routed_is_that_of_real_tokens():
    model = model_of("mod", {"causal": "ema_threshold", "capacity": 0.5})
    lm = RoutedLM(model, Tokenizer(), rule="topk")
    lm.loglikelihood([asked("a" * 12, "bcdef"), asked("b" * 4, "cdefg")])
    # Half of 16 and half of 8 tokens, in two of four layers.
    assert (lm.cost.routed, lm.cost.offered) == (2 * (8 + 4), 2 * (16 + 8))
    assert lm.cost.share_routed == 0.5
    assert lm.cost.realised_flops == lm.cost.nominal_flops
    dense = RoutedLM(model_of("vanilla", {}), Tokenizer())
    dense.loglikelihood([asked("a", "b")])
    assert dense.cost.share_routed is None


@pytest.mark.parametrize("batch", [1, 3, "auto"])
@pytest.mark.parametrize("name", ["vanilla", "mod", "expert_choice"])
def test_text_is_generated_as_without_a_cache(name, batch):
    model = model_of(name, {"causal": "ema_threshold", "capacity": 0.5} if name == "mod" else {})
    prompts = ["abc", "hello world", "a", "zz top", "qwertyuiop"]
    tokenizer = Tokenizer()
    options = {"until": [], "max_gen_toks": 9, "temperature": 0.0, "do_sample": False}
    lm = RoutedLM(model, tokenizer, sequence=64, batch=batch)
    texts = lm.generate_until([asked(one, options, kind="generate_until") for one in prompts])
    for prompt, text in zip(prompts, texts, strict=True):
        [ids] = generate(model, [tokenizer.encode(prompt)], new=9)
        ids = ids[: ids.index(tokenizer.end_of_text)] if tokenizer.end_of_text in ids else ids
        assert text == tokenizer.decode(ids)


def test_generation_ends_before_a_stop_string_and_after_its_tokens():
    model, tokenizer = model_of("vanilla", {}), Tokenizer()

    def text(until: list[str], tokens: int) -> str:
        lm = RoutedLM(model, tokenizer, sequence=64)
        options = {"until": until, "max_gen_toks": tokens}
        return lm.generate_until([asked("abc", options, kind="generate_until")])[0]

    whole = text([], 12)
    assert text([], 5) == tokenizer.decode(generate(model, [tokenizer.encode("abc")], new=5)[0])
    stop = whole[4:6]
    assert text([stop], 12) == whole[: whole.index(stop)]


def test_a_long_prompt_is_truncated_on_the_left_and_counted():
    lm = RoutedLM(model_of("vanilla", {}), Tokenizer(), sequence=16)
    options = {"until": [], "max_gen_toks": 4}
    long, short = (
        lm.generate_until([asked(text, options, kind="generate_until")])
        for text in ("x" * 50 + "abcdefghijkl", "abcdefghijkl")
    )
    assert long == short
    assert lm.truncated == 1
