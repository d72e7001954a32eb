"""Mixture-of-Depths against the dense model under the causal rule: reading a prompt, and decoding with a
cache. FLOPs are of the routing that took place.

B sequences, T tokens, N new tokens of each sequence.
"""

import copy
import statistics
from collections.abc import Callable

import pytest
import torch
from interleaved import InTurns
from targets import Reach
from torch import Tensor
from training import DTYPES, MadeUpText

from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.generate import decode, prefill
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=2048, width=256, layers=8, heads=4)
SEQUENCES, TOKENS, PAST, NEW = 4, 512, 2048, 16
CAPACITY = 0.125


def models(dtype: torch.dtype) -> dict[str, Decoder]:
    """Both models, weights in ``dtype``. The causal rule is untrained: its thresholds are averages
    over passes under the training rule, so that it selects about as many tokens."""
    mod = build_router("mod", {"capacity": CAPACITY, "every": 2, "causal": "ema_threshold"})
    found = {"mod": build_model(SHAPE, mod), "dense": build_model(SHAPE, build_router("vanilla"))}
    text = MadeUpText(SHAPE.vocabulary, SEQUENCES, TOKENS)
    with torch.no_grad():
        for _ in range(8):
            found["mod"].train()(text()[0], Context())
    return {name: model.to(dtype).eval() for name, model in found.items()}


def share_of(context: Context, tokens: int) -> float:
    """Of all tokens that came to routed layers, those that entered."""
    entered = [sum(c) for (_, name), c in context.trace.counts.items() if name == "depth"]
    return sum(entered) / (len(entered) * tokens)


def prefilled(model: Decoder, tokens_BT: Tensor) -> tuple[int, float]:
    """FLOPs of reading ``tokens_BT``, and the share that entered routed layers."""
    context = Context(selection="causal", cache=Cache(len(tokens_BT)), logits="last")
    with torch.no_grad():
        model(tokens_BT, context)
    lengths = (tokens_BT.shape[1],) * len(tokens_BT)
    flops = model.ledger(Workload(lengths=lengths, phase="prefill", counts=context.trace.counts)).total()
    return flops, share_of(context, tokens_BT.numel()) if context.trace.counts else 1.0


def decoded(model: Decoder, tokens_BN: Tensor, cache: Cache) -> tuple[int, float]:
    """The same of decoding ``tokens_BN`` one by one after what ``cache`` holds."""
    cache, flops, shares = copy.deepcopy(cache), 0, []
    for tokens_B in tokens_BN.unbind(1):
        context, past = Context(selection="causal", cache=cache), tuple(cache.read)
        with torch.no_grad():
            model(tokens_B[:, None], context)
        counts = context.trace.counts
        load = Workload(lengths=(1,) * len(past), phase="decode", past=past, counts=counts)
        flops += model.ledger(load).total()
        shares.append(share_of(context, len(past)) if counts else 1.0)
    return flops, statistics.fmean(shares)


def flop_ratios(drawn: list[Tensor], spent: Callable[[str, Tensor], tuple[int, float]]) -> list[float]:
    """MoD's FLOPs over the dense model's on each of ``drawn``."""
    both = [(spent("mod", tokens), spent("dense", tokens)) for tokens in drawn]
    entered = statistics.fmean(share for (_, share), _ in both)
    assert 0.75 * CAPACITY < entered < 1.25 * CAPACITY, f"{entered:.1%} of the tokens enter"
    return [mod / dense for (mod, _), (dense, _) in both]


@pytest.mark.parametrize("precision", DTYPES)
def test_prefill(precision: str, in_turns: InTurns, reach: Reach) -> None:
    both, text = models(DTYPES[precision]), MadeUpText(SHAPE.vocabulary, SEQUENCES, TOKENS)
    drawn: list[Tensor] = []

    def draw() -> tuple[Tensor]:
        drawn.append(text()[0])
        return (drawn[-1],)

    ways = {
        name: lambda tokens_BT, model=model: prefill(model, tokens_BT) for name, model in both.items()
    }
    turns = in_turns(ways, draw)
    flops = flop_ratios(drawn[-len(turns) :], lambda name, tokens_BT: prefilled(both[name], tokens_BT))
    over = [time / flop for time, flop in zip(turns.ratios("mod", "dense"), flops, strict=True)]
    usual = statistics.median(flops)
    reach(f"MoD prefill, time ratio over FLOP ratio {usual:.3f}, {precision}", over, 1.05, "x")


@pytest.mark.parametrize("precision", DTYPES)
def test_decode(precision: str, in_turns: InTurns, reach: Reach) -> None:
    both, text = models(DTYPES[precision]), MadeUpText(SHAPE.vocabulary, SEQUENCES, PAST)
    prompt_BT, first_B = text()[0], text()[0][:, 0]
    caches = {}
    for name, model in both.items():
        _, caches[name] = prefill(model, prompt_BT)
        # The cache doubles its room here, not in every turn.
        decode(model, first_B, caches[name])
    drawn: list[Tensor] = []

    def draw() -> tuple[Tensor, dict[str, Cache]]:
        drawn.append(text()[0][:, :NEW])
        return drawn[-1], copy.deepcopy(caches)

    def way(name: str) -> Callable[[Tensor, dict[str, Cache]], None]:
        def run(tokens_BN: Tensor, fresh: dict[str, Cache]) -> None:
            for tokens_B in tokens_BN.unbind(1):
                decode(both[name], tokens_B, fresh[name])

        return run

    turns = in_turns({name: way(name) for name in both}, draw)
    flops = flop_ratios(
        drawn[-len(turns) :], lambda name, tokens_BN: decoded(both[name], tokens_BN, caches[name])
    )
    realised = [time * flop for time, flop in zip(turns.ratios("dense", "mod"), flops, strict=True)]
    usual = 1 / statistics.median(flops)
    what = f"MoD decoding at a past of {PAST}, speed-up over FLOP ratio {usual:.2f}, {precision}"
    reach.at_least(what, realised, 0.9, "x")
