"""Expert layers against the dense MLP that spends the same on each token, forward and backward:
modbench's own, and for comparison one of stock modules.

B sequences, T tokens, D model width.
"""

import pytest
import torch
from interleaved import InTurns, Way
from plain_loop import PlainMLP
from targets import Reach
from torch import Tensor
from training import DTYPES

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.mlp import FeedForward
from modbench.routing.expert_bank import ExpertBank
from modbench.routing.registry import build_router
from modbench.routing.router import Router
from modbench.train.numerics import autocast

SEQUENCES, TOKENS, WIDTH, EXPERT_WIDTH = 4, 512, 256, 1024
#: Two experts of each token are as wide as the dense MLP.
SHAPE = ModelConfig(width=WIDTH, layers=2, heads=4, mlp_width=2 * EXPERT_WIDTH)
#: Size of a direction that all tokens of a batch share, with noise of 1: an expert's load then moves
#: from step to step by about a quarter of an even one, as it does when text is learnt.
SHARED = 0.2
#: The most that a token-choice layer may take over the dense MLP.
LIMITS = {"fp32": 1.35, "bf16": 1.4}


class Stream:
    """The normalised stream before a layer and the gradient after it, new ones at each call."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """(B, T, D) each."""
        noise_BTD, dy_BTD = (
            self._normal(SEQUENCES, TOKENS, WIDTH),
            self._normal(SEQUENCES, TOKENS, WIDTH),
        )
        x_BTD = noise_BTD + SHARED * self._normal(WIDTH)
        return x_BTD.requires_grad_(), dy_BTD

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


def feed_forward(router: Router) -> FeedForward:
    """The feed-forward part of the first block of ``router``, in training."""
    block = router.build_layer(SHAPE, 0)
    for module in block.modules():
        initialise = getattr(module, "initialise", None)
        if callable(initialise):
            initialise(0)
    return block.feed_forward.train()


def forward_and_backward(layer: FeedForward, dtype: torch.dtype) -> Way:
    def run(x_BTD: Tensor, dy_BTD: Tensor) -> None:
        context = Context()
        with autocast(dtype, x_BTD.device):
            y_BTD = layer(x_BTD, context)
        roots: list[Tensor] = [y_BTD]
        gradients: list[Tensor | None] = [dy_BTD.to(y_BTD.dtype)]
        losses = context.trace.auxiliary_loss()
        if isinstance(losses, Tensor):
            roots.append(losses)
            gradients.append(None)
        torch.autograd.backward(roots, gradients)
        layer.zero_grad(set_to_none=True)
        x_BTD.grad = None

    return run


def alone(bank: ExpertBank, equal: bool, dtype: torch.dtype) -> Way:
    """The experts without their router: rows that lie sorted already, as many of each."""
    rows = 2 * SEQUENCES * TOKENS
    counts = None if equal else [rows // bank.experts] * bank.experts
    x_ND, dy_ND = torch.randn(rows, WIDTH).to(dtype).requires_grad_(), torch.randn(rows, WIDTH).to(dtype)

    def run(*_: Tensor) -> None:
        with autocast(dtype, x_ND.device):
            y_ND = bank(x_ND, counts)
        torch.autograd.backward([y_ND], [dy_ND])
        bank.zero_grad(set_to_none=True)
        x_ND.grad = None

    return run


def plain(dtype: torch.dtype) -> Way:
    """The dense MLP of stock modules."""
    mlp = PlainMLP(SHAPE)

    def run(x_BTD: Tensor, dy_BTD: Tensor) -> None:
        with autocast(dtype, x_BTD.device):
            y_BTD = mlp(x_BTD)
        y_BTD.backward(dy_BTD.to(y_BTD.dtype))
        mlp.zero_grad(set_to_none=True)
        x_BTD.grad = None

    return run


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", ["token_choice", "expert_choice"])
def test_experts_against_a_dense_mlp(name: str, precision: str, in_turns: InTurns, reach: Reach) -> None:
    dtype = DTYPES[precision]
    routed = feed_forward(build_router(name, {"expert_width": EXPERT_WIDTH}))
    dense = feed_forward(build_router("vanilla"))
    ways = {
        name: forward_and_backward(routed, dtype),
        "dense": forward_and_backward(dense, dtype),
        "alone": alone(routed.bank, name == "expert_choice", dtype),
        "plain": plain(dtype),
    }
    turns = in_turns(ways, Stream())
    layer = f"{name} layer over a dense MLP"
    reach(f"{layer}, time, {precision}", turns.ratios(name, "dense"), LIMITS[precision], "x")
    reach.shown(f"{layer}, time, {precision}, its experts alone", turns.ratios("alone", "dense"), "x")
    reach.shown(f"{layer} of stock modules, time, {precision}", turns.ratios(name, "plain"), "x")
