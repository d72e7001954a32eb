"""One training step: the passes of its micro-batches, clipping, and the optimizer's step.

B sequences, T tokens.
"""

import torch
from torch import Tensor

from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.train.compiled import Losses, eager
from modbench.train.config import TrainConfig
from modbench.train.numerics import autocast
from modbench.train.ranks import ALONE, Ranks


def training_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    train: TrainConfig,
    batch: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    *,
    forced_balance: bool = False,
    losses: Losses | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, list[Trace]]:
    """Forward and backward pass of each micro-batch, clipping, optimizer step. Return the cross-entropy
    in nats per token, without auxiliary losses, and the traces of the passes. ``forced_balance``: see
    `modbench.model.context.Context`. ``losses``: the compiled losses of ``model``
    (`modbench.train.compiled`). ``ranks``: the processes that take the step together, each with its
    part ``batch``.

    The gradient is the mean over the micro-batches: that of the whole batch, but for what a router takes
    over all tokens of a pass (a pool, a capacity, a balance loss, an average), which is the micro-batch.
    """
    losses = losses or eager(model)
    parts = [passes(losses, part, dtype, train, forced_balance) for part in parts_of(batch, train)]
    ranks.reduce(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss = ranks.mean(torch.stack([loss.detach() for loss, _ in parts]).mean())
    return loss, [trace for _, trace in parts]


def parts_of(batch: tuple[Tensor, Tensor], train: TrainConfig) -> list[tuple[Tensor, Tensor]]:
    """The micro-batches of ``batch``."""
    inputs_BT, targets_BT = batch
    return list(zip(inputs_BT.split(train.rows), targets_BT.split(train.rows), strict=True))


def passes(
    losses: Losses,
    batch: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    train: TrainConfig,
    forced_balance: bool = False,
) -> tuple[Tensor, Trace]:
    """Forward and backward pass of one micro-batch."""
    inputs_BT, targets_BT = batch
    context = Context(selection="topk", forced_balance=forced_balance, checkpoint=train.recompute)
    with autocast(dtype, inputs_BT.device):
        loss, auxiliary = losses(inputs_BT, targets_BT, context)
    ((loss + auxiliary) / train.micro_batches).backward()
    return loss, context.trace
