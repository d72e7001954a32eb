"""Training to a budget of FLOPs, resumable to the bit.

B sequences, T tokens.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modbench.data.batches import Batches
from modbench.ledger import Workload
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder
from modbench.train import checkpoint
from modbench.train.budget import flops_per_step
from modbench.train.compiled import Losses, compiles, eager, losses_of
from modbench.train.config import TrainConfig
from modbench.train.counted import CountedSteps
from modbench.train.numerics import autocast

#: Seconds between two lines of progress.
PROGRESS_SECONDS = 0.5


class DivergedError(Exception):
    """The loss is no number any more."""


class StoppedError(Exception):
    """Somebody asked the run to stop; its state is saved."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run has spent. ``flops`` counts the routing that took place, ``flops_nominal`` what the
    options promise; both in convention ``model``. Of ``counted_steps`` steps a counter saw what they
    ran, and of ``unseen_steps`` it would have, had memory held them under it; ``miscounted`` says where
    the ledger states something else, and is empty where it doesn't."""

    steps: int
    tokens: int
    flops: int
    flops_nominal: int
    counted_steps: int
    unseen_steps: int
    miscounted: str
    curve: list[dict[str, Any]]


def learning_rate(done: float, train: TrainConfig) -> float:
    """Linear warm-up over a share of the run, then a cosine that ends with it. ``done``: the share of
    the run, in FLOPs, that will be spent after the step."""
    if done < train.warmup:
        return train.learning_rate * done / train.warmup
    progress = (done - train.warmup) / (1 - train.warmup)
    low = train.final_learning_rate
    return train.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


def build_optimizer(model: RoutedDecoder, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors and the embedding do not."""
    embedding = model.embedding.weight
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.dim() >= 2 and p is not embedding]
    others = [p for p in parameters if p.dim() < 2 or p is embedding]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (train.beta1, train.beta2)
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, fused=True)


def training_step(
    model: RoutedDecoder,
    optimizer: torch.optim.Optimizer,
    train: TrainConfig,
    batch: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    *,
    forced_balance: bool = False,
    losses: Losses | None = None,
) -> tuple[Tensor, Context]:
    """Forward, backward, clipping, optimizer. Returns the cross-entropy in nats per token, without the
    auxiliary losses, and the context with its trace. ``forced_balance``: see
    `modbench.model.context.Context`. ``losses``: those of ``model``, if they are compiled
    (`modbench.train.compiled`); no step waits for a GPU but where a layer has
    data-dependent shapes, or its experts don't fit grouped matmul
    (`modbench.routing.expert_bank.ExpertBank.fits_grouped_mm`)."""
    loss, context = _passes(losses or eager(model), batch, dtype, forced_balance)
    torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), context


def _passes(
    losses: Losses, batch: tuple[Tensor, Tensor], dtype: torch.dtype, forced_balance: bool = False
) -> tuple[Tensor, Context]:
    """Forward and backward."""
    inputs_BT, targets_BT = batch
    context = Context(selection="topk", forced_balance=forced_balance)
    with autocast(dtype, inputs_BT.device):
        loss, auxiliary = losses(inputs_BT, targets_BT, context)
    (loss + auxiliary).backward()
    return loss, context


def train_model(
    model: RoutedDecoder,
    batches: Batches,
    train: TrainConfig,
    *,
    dtype: torch.dtype,
    evaluate: Callable[[RoutedDecoder], float],
    folder: Path,
    say: Callable[[dict[str, Any]], None],
    origin: str = "",
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train until another step would spend more than ``train.budget``; from the checkpoint in
    ``folder`` if there is one.

    What counts is the routing that takes place (realised FLOPs, convention ``model``), not what the
    options promise: a scheme that skips more than it promised takes more steps, one that spends more
    takes fewer. Learning rate and learning curve go by the share of the budget that is spent.

    What the ledger states is held against what a few of the steps run
    (`modbench.train.counted.CountedSteps`).

    ``evaluate`` gives the held-out loss of a point of the learning curve. ``say`` hears of progress.
    ``origin`` names the text and the code: a checkpoint of another origin is not gone on from. When
    ``stop()`` turns true, the state is saved first.

    Raises:
        DivergedError: the loss is not finite.
        StoppedError: as asked; call again to go on.
    """
    on = next(model.parameters()).device
    optimizer = build_optimizer(model, train)
    losses = losses_of(model, train.compile)
    path = folder / "checkpoint.pt"
    step, flops, curve = 0, 0, []
    counts = CountedSteps(seed=batches.seed)
    state = _checkpoint_of(path, origin)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, flops, curve = state["step"], int(state["flops"]), state["curve"]
        counts.load_state(state["counts"])
        torch.set_rng_state(state["random"])
        if on.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], on)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "origin": origin,
            "step": step,
            "flops": str(flops),
            "each": str(each),
            "curve": curve,
            "counts": counts.state(),
            "random": torch.get_rng_state(),
        }
        if on.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(on)
        checkpoint.save(path, state)

    load = Workload.uniform(train.batch, train.sequence, "train")
    nominal = flops_per_step(model, train)
    known_counts: Any = None
    # What the next step is taken to cost: as much as the last one.
    each = int(state["each"]) if state is not None else nominal
    saved, said = time.monotonic(), 0.0
    model.train()
    compiled = compiles(train.compile, on)
    while (left := (train.budget - flops) // each) > 0:
        if stop():
            save()
            raise StoppedError
        # What will have been spent at the end if all further steps cost as much as the last one.
        whole = flops + left * each
        done = (flops + each) / whole
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, train)
        batch = _on(batches.step(step), on)
        take = partial(training_step, model, optimizer, train, batch, dtype, losses=losses)
        if not counts.due(step + 1):
            loss, context = take()
        elif compiled:
            counts.beside(step + 1, model, load, partial(_passes, eager(model), batch, dtype))
            loss, context = take()
        else:
            loss, context = counts.taken(step + 1, model, load, take)
        if context.trace.counts != known_counts:
            known_counts = context.trace.counts
            realised = Workload(lengths=load.lengths, phase="train", counts=known_counts)
            each = model.ledger(realised).total("model")
        flops += each
        step += 1
        counts.charged(step, each)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(f"the training loss is {value} at step {step} of {step + left - 1}")
        last = flops + each > train.budget
        # By what is there: `whole` moves with the routing's cost, and the same share comes twice.
        if last or train.evaluations * flops // whole > len(curve):
            heldout = evaluate(model)
            model.train()
            curve.append(
                {
                    "step": step,
                    "tokens": step * train.batch * train.sequence,
                    "flops": flops,
                    "train_loss": value,
                    "heldout_loss": heldout,
                }
            )
        now = time.monotonic()
        if now - said >= PROGRESS_SECONDS or last:
            say({"event": "step", "step": step, "steps": step + left - 1, "loss": value, "flops": flops})
            said = now
        if now - saved >= train.checkpoint_seconds or last:
            save()
            saved = time.monotonic()
    return Trained(
        steps=step,
        tokens=step * train.batch * train.sequence,
        flops=flops,
        flops_nominal=step * nominal,
        counted_steps=counts.counted,
        unseen_steps=counts.unseen,
        miscounted=counts.figure(),
        curve=curve,
    )


def _checkpoint_of(path: Path, origin: str) -> dict[str, Any] | None:
    """The checkpoint to go on from. One that can't be gone on from is worth no more than none, and the
    next one takes its place."""
    try:
        state = checkpoint.load(path)
        if state is None or state["origin"] == origin:
            return state
        why = f"is of {state['origin']}, not {origin}"
    except (checkpoint.DamagedError, KeyError) as error:
        why = f"is damaged ({error})"
    print(f"{path.name} {why}: starting anew", file=sys.stderr)
    return None


def _on(batch: tuple[Tensor, Tensor], on: torch.device) -> tuple[Tensor, Tensor]:
    """A batch, brought there."""
    inputs_BT, targets_BT = batch
    return inputs_BT.to(on, non_blocking=True), targets_BT.to(on, non_blocking=True)
