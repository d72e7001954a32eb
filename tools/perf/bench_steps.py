"""Whole training steps: the dense one against the machine and against a plain loop, Mixture-of-Depths
against the dense one. Targets hold for eager steps; compiled ones (``compile = "on"``) are shown."""

import pytest
import torch
from apart import PlainLoopApart
from gemm import ceiling, gemms
from interleaved import InTurns
from targets import Reach
from torch import Tensor
from training import DTYPES, MadeUpText, Trained

from modbench.model.config import ModelConfig

SHAPE = ModelConfig(vocabulary=2048, width=256, layers=8, heads=4)
TOKENS = 512
COMPILED = "compiled"
#: Least tokens per second of the dense step over a plain loop's.
OVER_PLAIN = {"fp32": 1.0, "bf16": 1.15}

# torch.compile's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("precision", DTYPES)
def test_dense_against_the_gemm_ceiling(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences, dtype = 8, DTYPES[precision]
    step = Trained("vanilla", SHAPE, dtype, compile="off")
    matmuls = gemms(step.model, sequences * TOKENS, dtype)
    ways = {"step": step, COMPILED: Trained("vanilla", SHAPE, dtype, compile="on"), **matmuls}
    turns = in_turns(ways, MadeUpText(SHAPE.vocabulary, sequences, TOKENS))
    fastest, name = ceiling(turns, matmuls)
    flops = step.flops(sequences, TOKENS)
    share, compiled = (
        [100 * flops / seconds / fastest for seconds in turns.seconds[way]] for way in ("step", COMPILED)
    )
    what = f"dense step, of the GEMM ceiling, {precision}"
    reach.shown(f"{what} ({fastest / 1e9:.0f} GFLOP/s: {name})", share, "%")
    reach.shown(f"{what}, {COMPILED}", compiled, "%")


@pytest.mark.parametrize("precision", DTYPES)
def test_dense_against_a_plain_loop(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences, dtype, threads = 8, DTYPES[precision], torch.get_num_threads()
    text = MadeUpText(SHAPE.vocabulary, sequences, TOKENS)
    with PlainLoopApart(SHAPE, sequences, TOKENS, precision, threads) as plain:

        def draw() -> tuple[Tensor, Tensor]:
            plain.draw()
            return text()

        ways = {
            "modbench": Trained("vanilla", SHAPE, dtype, compile="off"),
            COMPILED: Trained("vanilla", SHAPE, dtype, compile="on"),
            "plain": plain,
        }
        turns = in_turns(ways, draw)
    what = f"dense step, tokens per second over a plain loop's, {precision}"
    reach.at_least(what, turns.ratios("plain", "modbench"), OVER_PLAIN[precision], "x")
    reach.shown(f"{what}, {COMPILED}", turns.ratios("plain", COMPILED), "x")


@pytest.mark.parametrize("precision", DTYPES)
def test_mixture_of_depths_against_dense(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences, dtype = 4, DTYPES[precision]
    ways = {
        name + how: Trained(router, SHAPE, dtype, compile=compiles, **options)
        for how, compiles in (("", "off"), (COMPILED, "on"))
        for name, router, options in (
            ("mod", "mod", {"capacity": 0.125, "every": 2}),
            ("dense", "vanilla", {}),
        )
    }
    turns = in_turns(ways, MadeUpText(SHAPE.vocabulary, sequences, TOKENS))
    flops = ways["mod"].flops(sequences, TOKENS) / ways["dense"].flops(sequences, TOKENS)
    what = f"MoD training, time ratio over FLOP ratio {flops:.3f}, {precision}"
    over, compiled = (
        [ratio / flops for ratio in turns.ratios(f"mod{how}", f"dense{how}")] for how in ("", COMPILED)
    )
    reach(what, over, 1.10, "x")
    reach.shown(f"{what}, {COMPILED}", compiled, "x")
