"""A Llama of transformers with depth routing against the same Llama without: ratios of times, taken in
turns in one run, over ratios of FLOPs, as counted.

B sequences, T tokens.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from interleaved import InTurns
from targets import Reach
from torch import Tensor

import modbench
from modbench import FlopCounter

WIDTH, LAYERS, VOCABULARY = 256, 8, 2048
SEQUENCES, TOKENS = 4, 512
#: Most that a time ratio may be over the FLOP ratio.
BOUND = 1.08

# Of transformers, about names that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def pair() -> tuple[Any, Any]:
    """A Llama, and one that routes 12.5 % of the tokens in every other layer."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    dense = transformers.LlamaForCausalLM(config)
    routed = modbench.retrofit(copy.deepcopy(dense), "mod", every=2, capacity=0.125)
    routed.forced_balance = True  # an untrained causal rule selects any number of tokens
    if torch.cuda.is_available():
        dense, routed = dense.to("cuda", torch.bfloat16), routed.to("cuda", torch.bfloat16)
    return dense, routed


def draw() -> tuple[Tensor]:
    ids_BT = torch.randint(VOCABULARY, (SEQUENCES, TOKENS))
    return (ids_BT.cuda() if torch.cuda.is_available() else ids_BT,)


def training_step(model: Any) -> Callable[[Tensor], object]:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)

    def step(ids_BT: Tensor) -> None:
        model(ids_BT, labels=ids_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def prefill(model: Any) -> Callable[[Tensor], object]:
    model.eval()

    @torch.no_grad()
    def run(ids_BT: Tensor) -> object:
        return model(ids_BT, use_cache=True, logits_to_keep=1)

    return run


@pytest.mark.parametrize("what", [training_step, prefill])
def test_a_retrofit_takes_its_share_of_the_time(
    what: Callable[[Any], Callable[[Tensor], object]], in_turns: InTurns, reach: Reach
) -> None:
    ways = dict(zip(("dense", "routed"), map(what, pair()), strict=True))
    flops = {}
    for name, way in ways.items():
        with FlopCounter() as counter:
            way(*draw())
        flops[name] = counter.total
    share = flops["routed"] / flops["dense"]
    times = in_turns(ways, draw).ratios("routed", "dense")
    name = f"retrofitted Llama, {what.__name__.replace('_', ' ')}"
    reach.shown(f"{name}, FLOPs over dense", share, "x")
    reach.shown(f"{name}, time over dense", times, "x")
    reach(f"{name}, time ratio over FLOP ratio", [time / share for time in times], BOUND, "x")
