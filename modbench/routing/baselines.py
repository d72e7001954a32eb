"""Scores that are not learned: the baselines of a learned selection. No parameter, no matmul.

A control gives an order of the tokens and a cut: at or above it a token is selected under the causal
rule. Its scores make no gate.

B sequences, T tokens, D model width.
"""

import torch
from torch import Tensor

from modbench.model.context import Context
from modbench.model.init import stream
from modbench.routing.force_balance import strided_rows
from modbench.routing.scorer import LayerScorer


class Control(LayerScorer):
    """Scores (B, T) in [0, 1] of a layer's tokens, without a gradient. ``cut``: what the causal rule
    compares them with, None where only the running average of the lowest score selected can tell."""

    cut: float | None


class _Hashed(Control):
    """Scores that are hashed from a key of its own in each layer."""

    key: Tensor

    def __init__(self, capacity: float) -> None:
        super().__init__()
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))

    def initialise(self, seed: int) -> None:
        self.key.fill_(stream(seed, f"layers.{self.layer}.control").initial_seed() & 0xFFFFFFFF)


class Gaussian(_Hashed):
    """A random score for each token, drawn again in each training step. Shown as its quantile, which
    orders tokens as a Gaussian score does; a share ``capacity`` lies at or above 1 - ``capacity``.

    Under the causal rule the score depends on the token's position alone, so each position is selected
    with probability ``capacity``, independently of the others and of the batch. The draws are counted in
    a buffer: a resumed run continues with the next one.
    """

    draws: Tensor

    def __init__(self, capacity: float) -> None:
        super().__init__(capacity)
        self.cut = 1 - capacity
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        places_BT = context.positions(x_BTD)
        if context.selection == "causal":
            return _uniform(self.key, places_BT)
        row_B1 = torch.arange(len(x_BTD), device=x_BTD.device)[:, None]
        if context.first_row is not None:
            row_B1 = row_B1 + context.first_row
        return _uniform(self.key, 1 + self._draw(context), row_B1, places_BT)

    def _draw(self, context: Context) -> Tensor:
        """The number of this pass's draw: when checkpointing runs it again, the one it had."""
        if context.trace.repeated:
            return context.trace.tensors[self.layer, "draw"]
        draw = self.draws.clone()
        context.trace.show(self.layer, "draw", draw)
        if self.training:
            self.draws += 1
        return draw


class Hash(_Hashed):
    """A fixed random score for each token of the vocabulary, another in each layer (as Roller et al.
    2021 hash tokens to experts). Where the context has no token ids, a token's position stands for it.

    Tokens differ in frequency, so no cut is known beforehand.
    """

    cut = None

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        tokens_BT = context.tokens_BT
        return _uniform(self.key, context.positions(x_BTD) if tokens_BT is None else tokens_BT)


class Stride(Control):
    """1 for every (1 / ``capacity``)-th token from the first on, those at floor(j / capacity) for
    j = 0, 1, ..., else 0. Of any first n tokens that selects ceil(capacity * n), so both rules select
    the same."""

    cut = 0.5

    def __init__(self, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        before = context.before(x_BTD)
        tokens = x_BTD.shape[1]
        return strided_rows(self.capacity, before, tokens, x_BTD.device).float()


CONTROLS: dict[str, type[Gaussian | Hash | Stride]] = {
    "gaussian": Gaussian,
    "hash": Hash,
    "stride": Stride,
}


def _uniform(*keys: Tensor) -> Tensor:
    """Numbers in [0, 1) that the whole ``keys``, broadcast together, determine: the same on each device,
    unlike a generator's. In steps of 2^-24, which float32 holds exactly."""
    bits = torch.zeros_like(keys[0], dtype=torch.int64)
    for key in keys:
        bits = (bits + key.to(torch.int64) + 0x9E3779B9) & 0xFFFFFFFF
        # Twice shifted and multiplied, each bit depends on all. Below 2^27, so that nothing overflows.
        for _ in range(2):
            bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
        bits = bits ^ (bits >> 16)
    return (bits >> 8).to(torch.float32) * 2.0**-24
