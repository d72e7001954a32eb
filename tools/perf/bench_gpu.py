"""On a GPU, in bf16: the dense 124M model against the machine, routed models of its shape against it."""

import pytest
import torch
from gemm import ceiling, gemms
from interleaved import InTurns
from targets import Reach
from training import MadeUpText, Trained

from modbench.model.config import ModelConfig
from modbench.model.sizes import SIZES
from modbench.train.numerics import device

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("as_in_a_cell"),
]
SHAPE: ModelConfig = SIZES["124M"].model
TOKENS: int = SIZES["124M"].sequence
SEQUENCES = 16


def trained(router: str, **options: object) -> Trained:
    return Trained(router, SHAPE, torch.bfloat16, device(), **options)


def text() -> MadeUpText:
    return MadeUpText(SHAPE.vocabulary, SEQUENCES, TOKENS, device())


def test_dense_against_the_gemm_ceiling(in_turns: InTurns, reach: Reach) -> None:
    step = trained("vanilla")
    matmuls = gemms(step.model, SEQUENCES * TOKENS, torch.bfloat16, device())
    turns = in_turns({"step": step, **matmuls}, text())
    fastest, name = ceiling(turns, matmuls)
    flops = step.flops(SEQUENCES, TOKENS)
    share = [100 * flops / seconds / fastest for seconds in turns.seconds["step"]]
    what = f"GPU, dense step, of the GEMM ceiling, bf16 ({fastest / 1e12:.0f} TFLOP/s: {name})"
    reach.at_least(what, share, 50, "%")


def test_mixture_of_depths_against_dense(in_turns: InTurns, reach: Reach) -> None:
    mod, dense = trained("mod", capacity=0.125, every=2), trained("vanilla")
    turns = in_turns({"mod": mod, "dense": dense}, text())
    flops = mod.flops(SEQUENCES, TOKENS) / dense.flops(SEQUENCES, TOKENS)
    realised = [ratio * flops for ratio in turns.ratios("dense", "mod")]
    what = f"GPU, MoD training, speed-up over FLOP ratio {1 / flops:.2f}, bf16"
    reach.at_least(what, realised, 0.9, "x")


def test_token_choice_against_dense(in_turns: InTurns, reach: Reach) -> None:
    ways = {"token_choice": trained("token_choice", experts=8, top_k=2), "dense": trained("vanilla")}
    ratios = in_turns(ways, text()).ratios("token_choice", "dense")
    reach("GPU, token choice training, 8 experts, top 2, over dense, time, bf16", ratios, 1.25, "x")
