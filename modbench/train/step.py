"""One training step: the passes of its micro-batches, clipping, and the optimizer's step.

B sequences, T tokens.
"""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from modbench.ledger import component
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.routing.step_state import StepState
from modbench.train.compiled import Losses, eager
from modbench.train.config import TrainConfig
from modbench.train.numerics import autocast
from modbench.train.optimizer import Optimizer
from modbench.train.ranks import ALONE, Ranks


def training_step(
    model: LanguageModel,
    optimizer: Optimizer,
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
    part ``batch``; ``losses`` are then those of `Ranks.together`.

    The gradient is the mean over the micro-batches of all processes: that of the whole batch, but for
    what a router takes over all tokens of a pass (a pool, a capacity, a balance loss), which is the
    micro-batch. Biases and averages move once (`modbench.routing.step_state`).
    """
    losses = losses or eager(model)
    parts = parts_of(batch, train)
    number = len(parts) * ranks.count
    state = StepState(model) if number > 1 else None
    first = ranks.number * len(batch[0])
    done: list[tuple[Tensor, Trace]] = []
    for part in parts:
        more = len(done) + 1 < len(parts)
        with losses.no_sync() if more and isinstance(losses, DistributedDataParallel) else nullcontext():
            done.append(passes(losses, part, dtype, train, forced_balance, first if state else None))
        if state:
            state.end_pass(first=first == 0)
        first += train.rows
    if state:
        state.end(ranks.total, number)
    torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
    with component("optimizer"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss = torch.stack([loss.detach() for loss, _ in done]).mean()
    return ranks.total(loss) / ranks.count, [trace for _, trace in done]


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
    first: int | None = None,
) -> tuple[Tensor, Trace]:
    """Forward and backward pass of one micro-batch; ``first``: see `first_row` of `Context`."""
    inputs_BT, targets_BT = batch
    on = inputs_BT.device
    context = Context(selection="topk", forced_balance=forced_balance, checkpoint=train.recompute)
    if first is not None:
        context.first_row = torch.full((), first, device=on)
    with autocast(dtype, on):
        loss, auxiliary = losses(inputs_BT, targets_BT, context)
    ((loss + auxiliary) / train.micro_batches).backward()
    return loss, context.trace
