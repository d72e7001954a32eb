"""Stopwatches: the host's clock for work on a CPU, CUDA events for work on a GPU; and a quick
estimate of the matmul rate, for the utilisation shown while a run trains."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Action = Callable[[], object]
#: Least seconds of a sample; shorter runs are repeated. Twice pyperf's minimum.
SHORTEST = 2e-3
#: Most runs of a sample; only a run of less than half a microsecond would need more.
_MOST_LOOPS = 4096


def nothing() -> None:
    """Do nothing: the default callback."""


class Stopwatch:
    """For work that is complete when the call returns."""

    def seconds(self, run: Action, meanwhile: Action = nothing) -> float:
        """Seconds of one run. ``meanwhile`` is called, untimed, once the work is launched; a GPU is
        still busy with it then."""
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        meanwhile()
        return seconds


class CudaStopwatch(Stopwatch):
    """For work launched on a GPU's stream. ``flush`` overwrites the L2 cache before each run."""

    def __init__(self, flush: Action) -> None:
        self._flush = flush

    def seconds(self, run: Action, meanwhile: Action = nothing) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush()
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        meanwhile()
        end.synchronize()
        return start.elapsed_time(end) / 1e3  # milliseconds


def stopwatch(on: torch.device) -> Stopwatch:
    """The stopwatch for device ``on``."""
    if on.type != "cuda":
        return Stopwatch()
    room = 2 * torch.cuda.get_device_properties(on).L2_cache_size
    return CudaStopwatch(torch.empty(room, dtype=torch.uint8, device=on).zero_)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """``seconds`` per run of each sample, the mean over its ``loops`` runs."""

    seconds: list[float]
    loops: int


def sampled(
    watch: Stopwatch,
    run: Action,
    *,
    samples: int,
    warm_up: int = 0,
    before: Action = nothing,
    begin: Action = nothing,
    meanwhile: Action = nothing,
) -> Samples:
    """Time ``run`` after ``warm_up`` untimed runs. ``before`` is called before each run, ``begin``
    before the first sample, and ``meanwhile`` during the last run of each sample, once its work is
    launched; none of them is timed."""

    def span(loops: int, last: Action = nothing) -> float:
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
    begin()
    return Samples(seconds=[span(loops, meanwhile) / loops for _ in range(samples)], loops=loops)


#: Seconds in all: a run waits for them.
_SECONDS = 0.1
#: Rows of the smallest matrix, short on any machine, and of the largest, which fills a GPU.
_SMALLEST, _LARGEST = 128, 8192
#: The best of them counts, so that a slow first one does not.
_SAMPLES = 3


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square matmul in ``dtype``: the best of several, of growing size as long as the next
    size fits into a tenth of a second in total. Global generators are left as they are."""
    watch = stopwatch(device)
    generator = torch.Generator(device)
    rate = 0.0
    spent = 0.0
    size = _SMALLEST
    while True:
        matrix = torch.randn(size, size, generator=generator, device=device).to(dtype)
        seconds = [watch.seconds(lambda matrix=matrix: matrix @ matrix) for _ in range(_SAMPLES)]  # type: ignore[misc]
        rate = max(rate, 2 * size**3 / min(seconds))
        spent += sum(seconds)
        if size == _LARGEST or spent + 8 * sum(seconds) > _SECONDS:
            return rate
        size *= 2
