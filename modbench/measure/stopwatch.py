"""Stopwatches: the host's clock for work on a CPU, CUDA events for work on a GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

#: Least seconds of a sample; shorter runs are repeated. Twice pyperf's minimum.
SHORTEST = 2e-3
_MOST_LOOPS = 4096


def nothing() -> None:
    """Do nothing: the default callback."""


class Stopwatch(Protocol):
    def seconds(self, run: Callable[[], object], meanwhile: Callable[[], object] = nothing) -> float:
        """Seconds of one run. ``meanwhile`` is called, untimed, once the work is launched; a GPU is
        still busy with it then."""


class HostStopwatch:
    """For work that is complete when the call returns."""

    def seconds(self, run: Callable[[], object], meanwhile: Callable[[], object] = nothing) -> float:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        meanwhile()
        return seconds


class CudaStopwatch:
    """For work launched on a GPU's stream. ``flush`` overwrites the L2 cache before each run; ``cuda``
    is `torch.cuda`."""

    def __init__(self, cuda: Any, flush: Callable[[], object]) -> None:
        self._cuda, self._flush = cuda, flush

    def seconds(self, run: Callable[[], object], meanwhile: Callable[[], object] = nothing) -> float:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._flush()
        self._cuda.synchronize()
        start.record()
        run()
        end.record()
        meanwhile()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # milliseconds


def stopwatch(on: torch.device) -> Stopwatch:
    """The stopwatch for device ``on``."""
    if on.type != "cuda":
        return HostStopwatch()
    room = 2 * torch.cuda.get_device_properties(on).L2_cache_size
    return CudaStopwatch(torch.cuda, torch.empty(room, dtype=torch.uint8, device=on).zero_)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """``seconds`` per run of each sample, the mean over its ``loops`` runs."""

    seconds: list[float]
    loops: int


def sampled(
    watch: Stopwatch,
    run: Callable[[], object],
    *,
    samples: int,
    warm_up: int = 0,
    before: Callable[[], object] = nothing,
    begin: Callable[[], object] = nothing,
    meanwhile: Callable[[], object] = nothing,
) -> Samples:
    """Time ``run`` after ``warm_up`` untimed runs. ``before`` is called before each run, ``begin``
    before the first sample, and ``meanwhile`` during the last run of each sample, once its work is
    launched; none of them is timed."""

    def span(loops: int, last: Callable[[], object] = nothing) -> float:
        total = 0.0
        for left in reversed(range(loops)):
            before()
            total += watch.seconds(run, nothing if left else last)
        return total

    for _ in range(warm_up):
        span(1)
    loops = 1
    while loops < _MOST_LOOPS and span(loops) < SHORTEST:
        loops *= 2
    seconds = []
    begin()
    for _ in range(samples):
        seconds.append(span(loops, meanwhile) / loops)
    return Samples(seconds=seconds, loops=loops)
