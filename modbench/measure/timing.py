"""Wall time of a forward pass and of a training step."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modbench.analysis.intervals import summary
from modbench.measure.loss import heldout_windows
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder
from modbench.train.compiled import forward_of, losses_of
from modbench.train.config import TrainConfig
from modbench.train.loop import build_optimizer, training_step
from modbench.train.numerics import autocast

WARM_UP = 3


def time_model(
    model: RoutedDecoder, train: TrainConfig, *, dtype: torch.dtype, repeats: int, text: Any
) -> dict[str, dict[str, Any]]:
    """``forward_seconds`` and ``train_step_seconds`` of one batch of ``text`` (N tokens) under the
    training rule: median, interquartile range, n and stability. Changes the model. The caller ensures
    that no other process of ours is running."""
    on = next(model.parameters()).device
    window_BT = torch.from_numpy(
        heldout_windows(text, sequence=train.sequence, tokens=train.batch * train.sequence)
    ).to(on)
    batch = window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
    optimizer = build_optimizer(model, train)
    passes, losses = forward_of(model, train.compile), losses_of(model, train.compile)

    def forward() -> None:
        with torch.no_grad(), autocast(dtype, on):
            passes(batch[0], Context(selection="topk"))

    def step() -> Tensor:
        return training_step(model, optimizer, train, batch, dtype, losses=losses)[0]

    model.eval()
    forward_seconds = _time(forward, repeats, on)
    model.train()
    return {"forward_seconds": forward_seconds, "train_step_seconds": _time(step, repeats, on)}


def _time(run: Callable[[], object], repeats: int, on: torch.device) -> dict[str, Any]:
    seconds = []
    for number in range(WARM_UP + repeats):
        _wait(on)
        start = time.perf_counter()
        run()
        _wait(on)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return summary(seconds)


def _wait(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize(on)
