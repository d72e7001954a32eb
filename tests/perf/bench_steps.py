"""Whole training steps: the dense one against the machine and against a plain loop, Mixture-of-Depths
against the dense one. Targets are asked of steps compiled as one program (``compile = "on"``); steps as
they are written stand beside them."""

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
WRITTEN = "as written"

# torch.compile's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("precision", DTYPES)
def test_dense_against_the_gemm_ceiling(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences, dtype = 8, DTYPES[precision]
    step = Trained("vanilla", SHAPE, dtype, compile="on")
    matmuls = gemms(step.model, sequences * TOKENS, dtype)
    ways = {"step": step, WRITTEN: Trained("vanilla", SHAPE, dtype, compile="off"), **matmuls}
    turns = in_turns(ways, MadeUpText(SHAPE.vocabulary, sequences, TOKENS))
    fastest, name = ceiling(turns, matmuls)
    flops = step.flops(sequences, TOKENS)
    share, as_written = (
        [100 * flops / seconds / fastest for seconds in turns.seconds[way]] for way in ("step", WRITTEN)
    )
    what = f"dense step, of the GEMM ceiling, {precision}"
    if precision == "fp32":
        reach.at_least(f"{what} ({fastest / 1e9:.0f} GFLOP/s: {name})", share, 65, "%")
    else:
        reach.shown(f"{what} ({fastest / 1e9:.0f} GFLOP/s: {name})", share, "%")
    reach.shown(f"{what}, {WRITTEN}", as_written, "%")


@pytest.mark.parametrize("precision", DTYPES)
def test_dense_against_a_plain_loop(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences, dtype, threads = 8, DTYPES[precision], torch.get_num_threads()
    text = MadeUpText(SHAPE.vocabulary, sequences, TOKENS)
    with PlainLoopApart(SHAPE, sequences, TOKENS, precision, threads) as plain:

        def draw() -> tuple[Tensor, Tensor]:
            plain.draw()
            return text()

        ways = {
            "modbench": Trained("vanilla", SHAPE, dtype, compile="on"),
            WRITTEN: Trained("vanilla", SHAPE, dtype, compile="off"),
            "plain": plain,
        }
        turns = in_turns(ways, draw)
    what = f"dense step, tokens per second over a plain loop's, {precision}"
    reach.at_least(what, turns.ratios("plain", "modbench"), 1.2, "x")
    reach.shown(f"{what}, {WRITTEN}", turns.ratios("plain", WRITTEN), "x")


@pytest.mark.parametrize("precision", DTYPES)
def test_mixture_of_depths_against_dense(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences, dtype = 4, DTYPES[precision]
    ways = {
        name + how: Trained(router, SHAPE, dtype, compile=compiles, **options)
        for how, compiles in (("", "on"), (WRITTEN, "off"))
        for name, router, options in (
            ("mod", "mod", {"capacity": 0.125, "every": 2}),
            ("dense", "vanilla", {}),
        )
    }
    turns = in_turns(ways, MadeUpText(SHAPE.vocabulary, sequences, TOKENS))
    flops = ways["mod"].flops(sequences, TOKENS) / ways["dense"].flops(sequences, TOKENS)
    what = f"MoD training, time ratio over FLOP ratio {flops:.3f}, {precision}"
    over, as_written = (
        [ratio / flops for ratio in turns.ratios(f"mod{how}", f"dense{how}")] for how in ("", WRITTEN)
    )
    reach(what, over, 1.05, "x")
    reach.shown(f"{what}, {WRITTEN}", as_written, "x")
