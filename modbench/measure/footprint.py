"""Memory of training and inference by component: measured in a fresh process, and predicted from shapes.

Measured bytes are above the memory that the process held after the same work had been done once and
freed: code that a first run loads, such as the optimizer's and the matmul kernels', does not count.

B sequences, T tokens.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.measure.benchmark_case import random_tokens
from modbench.measure.benchmark_target import BenchmarkTarget
from modbench.measure.memory_meter import MemoryMeter
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.plan.activations import inference_memory
from modbench.plan.memory import Measured, Recipe
from modbench.routing.build import RoutedDecoder
from modbench.train.loop import build_optimizer, training_step


def training_footprint(subject: BenchmarkTarget) -> dict[str, int]:
    """Bytes at the peak of a training step that adds to existing gradients, as after a first
    micro-batch. Parameters, gradients and optimizer state are sizes of tensors; ``activations`` is the
    rest of the peak."""
    _first_step(subject, subject.build())
    meter = MemoryMeter(subject.on)
    model = subject.build()
    optimizer = _first_step(subject, model)
    for parameter in model.parameters():
        if parameter in optimizer.state:  # not frozen
            parameter.grad = torch.zeros_like(parameter)
    parts = {
        "parameters": _bytes(model.parameters()),
        "gradients": _bytes(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer": _bytes(
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ),
    }
    meter.reset_peak()
    _step(subject, model, optimizer)
    peak = meter.peak()
    return parts | {"activations": peak - sum(parts.values()), "peak": peak}


def inference_footprint(subject: BenchmarkTarget) -> dict[str, int]:
    """Bytes at the peak of `largest_prefill`, with weights in the subject's dtype. ``cache``: keys and
    values; ``activations``: the rest of the peak."""
    _prefill(subject, subject.build().to(subject.dtype), *largest_prefill(subject))
    meter = MemoryMeter(subject.on)
    model = subject.build().to(subject.dtype)
    meter.reset_peak()
    cache = _prefill(subject, model, *largest_prefill(subject))
    peak = meter.peak()
    parts = {"parameters": _bytes(model.parameters()), "cache": cache.bytes}
    return parts | {"activations": peak - sum(parts.values()), "peak": peak}


def predicted_training(subject: BenchmarkTarget) -> dict[str, int]:
    """Prediction of `training_footprint` by `modbench.plan`, without allocating.

    Raises:
        UserError: the router's layers depend on values.
    """
    measured = Measured(
        _on_meta(subject),
        subject.train.sequence,
        Recipe(micro_batch=subject.train.batch),
        "cpu" if subject.on.type == "cpu" else "gpu",
        "float32" if subject.dtype == torch.float32 else "autocast",
    )
    memory = measured.memory(subject.train.batch)
    parts = {name: getattr(memory, name) for name in ("parameters", "gradients", "optimizer")}
    return parts | {"activations": memory.total - sum(parts.values()), "peak": memory.total}


def predicted_inference(subject: BenchmarkTarget) -> dict[str, int]:
    """Prediction of `inference_footprint` by `modbench.plan`."""
    memory = inference_memory(
        _on_meta(subject),
        *largest_prefill(subject),
        bfloat16=subject.dtype != torch.float32,
        kernels="cpu" if subject.on.type == "cpu" else "gpu",
    )
    return {
        "parameters": memory.parameters,
        "cache": memory.cache,
        "activations": memory.working,
        "peak": memory.total,
    }


def largest_prefill(subject: BenchmarkTarget) -> tuple[int, int]:
    """The largest number of sequences, and of tokens per sequence, that the subject's cases cache."""
    time = subject.time
    return max(time.prefill_batch, *time.decode_batches), max(*time.prefill, *time.decode_past)


def _on_meta(subject: BenchmarkTarget) -> RoutedDecoder:
    assert subject.router is not None
    with torch.device("meta"):
        return RoutedDecoder(subject.config, subject.router)


def _first_step(subject: BenchmarkTarget, model: RoutedDecoder) -> torch.optim.Optimizer:
    optimizer = build_optimizer(model.train(), subject.train)
    _step(subject, model, optimizer)
    return optimizer


def _step(subject: BenchmarkTarget, model: RoutedDecoder, optimizer: torch.optim.Optimizer) -> None:
    window_BT = random_tokens(model, subject.train.batch, subject.train.sequence + 1)
    batch = window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
    forced = subject.time.forced_balance
    training_step(model, optimizer, subject.train, batch, subject.dtype, forced_balance=forced)


@torch.no_grad()
def _prefill(subject: BenchmarkTarget, model: RoutedDecoder, sequences: int, length: int) -> Cache:
    cache, forced = Cache(sequences), subject.time.forced_balance
    context = Context(selection="causal", cache=cache, logits="last", forced_balance=forced)
    model.eval()(random_tokens(model, sequences, length), context)
    return cache


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def predicted_peak(cell: Mapping[str, Any], kind: str = "time") -> int | None:
    """Predicted peak bytes of a training step of ``cell`` (of `modbench time` or of a suite), or of a
    prefill if ``kind`` is ``inference_memory``; None if it cannot be predicted."""
    if cell["router"] is None:
        return None
    try:
        subject = BenchmarkTarget.of({"time": {}, **cell})
        predict = predicted_inference if kind == "inference_memory" else predicted_training
        return predict(subject)["peak"]
    except UserError:
        return None
