"""How long something takes: by the host's clock on a processor, by CUDA events on a GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

#: A sample spans at least so many seconds; what is shorter is run several times for it. Twice what
#: pyperf asks for.
SHORTEST = 2e-3
_MOST_LOOPS = 4096


class Stopwatch(Protocol):
    def seconds(self, run: Callable[[], object]) -> float:
        """Of one run."""


class HostStopwatch:
    """For work that is done when the call returns."""

    def seconds(self, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


class CudaStopwatch:
    """For work that a GPU's stream is given. ``flush`` fills the L2 cache before each run, so that none
    finds what the last one left there; ``cuda`` is `torch.cuda`."""

    def __init__(self, cuda: Any, flush: Callable[[], object]) -> None:
        self._cuda, self._flush = cuda, flush

    def seconds(self, run: Callable[[], object]) -> float:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._flush()
        self._cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # milliseconds


def stopwatch(on: torch.device) -> Stopwatch:
    """The one for the device ``on``."""
    if on.type != "cuda":
        return HostStopwatch()
    room = 2 * torch.cuda.get_device_properties(on).L2_cache_size
    return CudaStopwatch(torch.cuda, torch.empty(room, dtype=torch.uint8, device=on).zero_)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """``seconds`` of one run each, the mean over ``loops`` runs."""

    seconds: list[float]
    loops: int


def sampled(
    watch: Stopwatch,
    run: Callable[[], object],
    *,
    samples: int,
    warm_up: int = 0,
    before: Callable[[], object] = lambda: None,
    begin: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> Samples:
    """Time ``run``, after ``warm_up`` runs that aren't. ``before`` comes before each run, ``begin``
    before the first sample, ``after`` after each one; none of them is on the clock."""

    def span(loops: int) -> float:
        total = 0.0
        for _ in range(loops):
            before()
            total += watch.seconds(run)
        return total

    for _ in range(warm_up):
        span(1)
    loops = 1
    while loops < _MOST_LOOPS and span(loops) < SHORTEST:
        loops *= 2
    seconds = []
    begin()
    for _ in range(samples):
        seconds.append(span(loops) / loops)
        after()
    return Samples(seconds=seconds, loops=loops)
