"""Memory of training and of inference by what holds it: measured in a fresh process, and predicted from
shapes.

On a GPU, the allocator's bytes; on a CPU, the resident set. Both above what the process held when it
had done the same once and let go of it: a first run loads code, such as the optimizer's, the router's
and the matmul kernels', and that is no model's memory.

B sequences, T tokens.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.measure.cases import made_up
from modbench.measure.memory import forget_peak, resident_bytes
from modbench.measure.subject import BenchmarkTarget
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.plan.inference import inference_memory
from modbench.plan.memory import Measured, Recipe
from modbench.routing.build import RoutedDecoder
from modbench.train.loop import build_optimizer, training_step


class Meter:
    """Bytes held on ``on`` above those of its construction."""

    def __init__(self, on: torch.device) -> None:
        self._on = on
        gc.collect()
        _give_back()
        self._idle = self._now()
        self.forget()

    def forget(self) -> None:
        """Let the peak start from now."""
        if self._on.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._on)
        else:
            forget_peak()

    def peak(self) -> int:
        if self._on.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._on)) - self._idle
        return resident_bytes("VmHWM") - self._idle

    def _now(self) -> int:
        if self._on.type == "cuda":
            return int(torch.cuda.memory_allocated(self._on))
        return resident_bytes("VmRSS")


def training_footprint(subject: BenchmarkTarget) -> dict[str, int]:
    """Bytes at the peak of a training step that finds the gradients of a micro-batch before it, and
    adds to them. Parameters, gradients and the optimizer's state by the sizes of their tensors;
    ``activations`` is the rest of the peak."""
    _first_step(subject, subject.build())
    meter = Meter(subject.on)
    model = subject.build()
    optimizer = _first_step(subject, model)
    for parameter in model.parameters():
        if parameter in optimizer.state:  # it had a gradient, which a frozen one has not
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
    meter.forget()
    _step(subject, model, optimizer)
    peak = meter.peak()
    return parts | {"activations": peak - sum(parts.values()), "peak": peak}


def inference_footprint(subject: BenchmarkTarget) -> dict[str, int]:
    """Bytes at the peak of `largest_prefill`, weights in the subject's dtype. ``cache``: keys and values
    of all kept tokens; ``activations`` is the rest of the peak."""
    _prefill(subject, subject.build().to(subject.dtype), *largest_prefill(subject))
    meter = Meter(subject.on)
    model = subject.build().to(subject.dtype)
    meter.forget()
    cache = _prefill(subject, model, *largest_prefill(subject))
    peak = meter.peak()
    parts = {"parameters": _bytes(model.parameters()), "cache": cache.bytes}
    return parts | {"activations": peak - sum(parts.values()), "peak": peak}


def predicted_training(subject: BenchmarkTarget) -> dict[str, int]:
    """What `training_footprint` should find, from `modbench.plan`: nothing is allocated.

    Raises:
        UserError: the router's layers need values.
    """
    measured = Measured(
        _on_meta(subject),
        subject.train.sequence,
        Recipe(micro_batch=subject.train.batch),
        "cpu" if subject.on.type == "cpu" else "gpu",
        "float32" if subject.dtype == torch.float32 else "autocast",
    )
    memory = measured.memory(subject.train.batch)
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
    }
    return parts | {"activations": memory.total - sum(parts.values()), "peak": memory.total}


def predicted_inference(subject: BenchmarkTarget) -> dict[str, int]:
    """The same for `inference_footprint`."""
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
    """The most prompts, and the most tokens of each, that the subject's cases put in a cache."""
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
    window_BT = made_up(model, subject.train.batch, subject.train.sequence + 1)
    batch = window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
    forced = subject.time.forced_balance
    training_step(model, optimizer, subject.train, batch, subject.dtype, forced_balance=forced)


@torch.no_grad()
def _prefill(subject: BenchmarkTarget, model: RoutedDecoder, sequences: int, length: int) -> Cache:
    cache, forced = Cache(sequences), subject.time.forced_balance
    context = Context(selection="causal", cache=cache, logits="last", forced_balance=forced)
    model.eval()(made_up(model, sequences, length), context)
    return cache


def _give_back() -> None:
    """Let the C library return to the kernel what it keeps of freed memory, where it can."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def predicted_peak(cell: Mapping[str, Any], kind: str = "time") -> int | None:
    """Bytes that the plan predicts at the peak of what ``cell`` does: a training step, unless it is
    inference alone; None where there is nothing to predict from.

    ``cell``: one of `modbench time`, or of a suite."""
    if cell["router"] is None:
        return None
    try:
        subject = BenchmarkTarget.of({"time": {}, **cell})
        predict = predicted_inference if kind == "inference_memory" else predicted_training
        return predict(subject)["peak"]
    except UserError:
        return None
