"""Memory of training and inference by component, measured in a fresh process.

Measured bytes are above the memory that the process held after the same work had been done once and
freed: code that a first run loads, such as the optimizer's and the matmul kernels', does not count.
"""

import contextlib
import ctypes
import gc
import resource
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor

from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.timing.benchmark_case import BenchmarkTarget, random_batch, random_tokens, read
from modbench.timing.config import FORCED_BALANCE
from modbench.train.optimizer import Optimizer, build_optimizer
from modbench.train.step import training_step


def training_footprint(subject: BenchmarkTarget) -> dict[str, int]:
    """Bytes at the peak of a training step that adds to existing gradients, as after a first
    micro-batch. Parameters, gradients and optimizer state are sizes of tensors; ``activations`` is the
    rest of the peak."""
    _after_a_step(subject, subject.build())
    meter = MemoryMeter(subject.on)
    model = subject.build()
    optimizer, step = _after_a_step(subject, model)
    for parameter in model.parameters():
        if parameter in optimizer.state:  # not frozen
            parameter.grad = torch.zeros_like(parameter)
    states = (value for state in optimizer.state.values() for value in state.values())
    parts = {
        "parameters": _bytes(model.parameters()),
        "gradients": _bytes(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer": _bytes(value for value in states if isinstance(value, Tensor)),
    }
    meter.reset_peak()
    step()
    peak = meter.peak()
    return parts | {"activations": peak - sum(parts.values()), "peak": peak}


def inference_footprint(subject: BenchmarkTarget) -> dict[str, int]:
    """Bytes at the peak of `largest_prefill`, with weights in the subject's dtype. ``cache``: keys and
    values; ``activations``: the rest of the peak."""
    _prefill(subject, subject.build().to(subject.dtype))
    meter = MemoryMeter(subject.on)
    model = subject.build().to(subject.dtype)
    meter.reset_peak()
    cache = _prefill(subject, model)
    peak = meter.peak()
    parts = {"parameters": _bytes(model.parameters()), "cache": cache.bytes}
    return parts | {"activations": peak - sum(parts.values()), "peak": peak}


def largest_prefill(subject: BenchmarkTarget) -> tuple[int, int]:
    """The largest number of sequences, and of tokens per sequence, that the subject's cases cache."""
    time = subject.time
    return max(time.prefill_batch, *time.decode_batches), max(*time.prefill, *time.decode_past)


def _after_a_step(
    subject: BenchmarkTarget, model: LanguageModel
) -> tuple[Optimizer, Callable[[], object]]:
    """Take a training step, which creates the optimizer's state; return the optimizer, and a function
    that takes another step."""
    train = subject.train
    optimizer = build_optimizer(model.train(), train)
    batch = random_batch(model, train)
    step = partial(
        training_step, model, optimizer, train, batch, subject.dtype, forced_balance=FORCED_BALANCE
    )
    step()
    return optimizer, step


def _prefill(subject: BenchmarkTarget, model: LanguageModel) -> Cache:
    sequences, length = largest_prefill(subject)
    cache = Cache(sequences)
    tokens_BT = random_tokens(model.eval(), sequences, length)
    read(model, tokens_BT, cache, logits="last")
    return cache


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class MemoryMeter:
    """Measures peak memory on ``on`` above the memory held at its construction."""

    def __init__(self, on: torch.device) -> None:
        self._on = on
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)
        self._baseline = psutil.Process().memory_info().rss
        if on.type == "cuda":
            self._baseline = torch.cuda.memory_allocated(on)
        self.reset_peak()

    def reset_peak(self) -> None:
        if self._on.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._on)
        else:
            with contextlib.suppress(OSError):  # not Linux; importing PyTorch may then hide a small peak
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        if self._on.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._on)) - self._baseline
        with contextlib.suppress(OSError, IndexError):  # not Linux
            # `reset_peak` resets it, unlike ru_maxrss.
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0]) - self._baseline
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._baseline  # bytes on macOS


def release_memory(on: torch.device) -> None:
    """Free unreachable objects (errors and their frames, for instance) and a GPU's cached blocks."""
    gc.collect()
    if on.type == "cuda":
        torch.cuda.empty_cache()
