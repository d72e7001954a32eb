"""Whole training steps: the dense one against the machine and against a plain loop, Mixture-of-Depths
against the dense one."""

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


@pytest.mark.parametrize("precision", DTYPES)
def test_dense_against_the_gemm_ceiling(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences = 8
    step = Trained("vanilla", SHAPE, DTYPES[precision])
    matmuls = gemms(step.model, sequences * TOKENS, DTYPES[precision])
    turns = in_turns({"step": step, **matmuls}, MadeUpText(SHAPE.vocabulary, sequences, TOKENS))
    fastest, name = ceiling(turns, matmuls)
    flops = step.flops(sequences, TOKENS)
    share = [100 * flops / seconds / fastest for seconds in turns.seconds["step"]]
    what = f"dense step, of the GEMM ceiling, {precision} ({fastest / 1e9:.0f} GFLOP/s: {name})"
    if precision == "fp32":
        reach.at_least(what, share, 65, "%")
    else:
        reach.shown(what, share, "%")


@pytest.mark.parametrize("precision", DTYPES)
def test_dense_against_a_plain_loop(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences, threads = 8, torch.get_num_threads()
    text = MadeUpText(SHAPE.vocabulary, sequences, TOKENS)
    with PlainLoopApart(SHAPE, sequences, TOKENS, precision, threads) as plain:

        def draw() -> tuple[Tensor, Tensor]:
            plain.draw()
            return text()

        ways = {"modbench": Trained("vanilla", SHAPE, DTYPES[precision]), "plain": plain}
        turns = in_turns(ways, draw)
    faster = turns.ratios("plain", "modbench")
    reach.at_least(f"dense step, tokens per second over a plain loop's, {precision}", faster, 1.2, "x")


@pytest.mark.parametrize("precision", DTYPES)
def test_mixture_of_depths_against_dense(precision: str, in_turns: InTurns, reach: Reach) -> None:
    sequences, dtype = 4, DTYPES[precision]
    ways = {
        "mod": Trained("mod", SHAPE, dtype, capacity=0.125, every=2),
        "dense": Trained("vanilla", SHAPE, dtype),
    }
    turns = in_turns(ways, MadeUpText(SHAPE.vocabulary, sequences, TOKENS))
    flops = ways["mod"].flops(sequences, TOKENS) / ways["dense"].flops(sequences, TOKENS)
    over = [ratio / flops for ratio in turns.ratios("mod", "dense")]
    reach(f"MoD training, time ratio over FLOP ratio {flops:.3f}, {precision}", over, 1.05, "x")
