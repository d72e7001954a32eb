"""Stopwatches: the host's clock for work on a CPU, CUDA events for work on a GPU; and a quick
estimate of the matmul rate, for the utilisation shown while a run trains."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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

    def in_a_row(self, run: Action, runs: int, meanwhile: Action = nothing) -> float:
        """Seconds of ``runs`` runs by the host's clock, nothing between them; ``meanwhile`` is called
        after the last."""
        self.wait()
        start = time.perf_counter()
        for _ in range(runs):
            run()
        self.wait()
        seconds = time.perf_counter() - start
        meanwhile()
        return seconds

    def wait(self) -> None:
        """Wait until all launched work is complete."""


class CudaStopwatch(Stopwatch):
    """For work launched on a GPU's stream. ``flush`` overwrites the L2 cache before each run."""

    def __init__(self, flush: Action) -> None:
        self._flush = flush

    def seconds(self, run: Action, meanwhile: Action = nothing) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush()
        self.wait()
        start.record()
        run()
        end.record()
        meanwhile()
        end.synchronize()
        return start.elapsed_time(end) / 1e3  # milliseconds

    def wait(self) -> None:
        torch.cuda.synchronize()


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
    warm_up: float = 0.0,
    loops: int = 0,
    shortest: float = SHORTEST,
    in_a_row: bool = False,
    before: Action = nothing,
    begin: Action = nothing,
    meanwhile: Action = nothing,
) -> Samples:
    """Time ``run`` after ``warm_up`` seconds of untimed runs, with Python's garbage collector off. A
    sample has ``loops`` runs; 0: as many as take ``shortest`` seconds.

    ``before`` is called before each run, ``begin`` before the first sample, and ``meanwhile`` during the
    last run of each sample, once its work is launched; none of them is timed. ``in_a_row``: nothing
    comes between the runs of a sample, not even ``before`` (`Stopwatch.in_a_row`).
    """

    def span(loops: int, last: Action = nothing) -> float:
        if in_a_row:
            return watch.in_a_row(run, loops, last)
        total = 0.0
        for left in reversed(range(loops)):
            before()
            total += watch.seconds(run, nothing if left else last)
        return total

    collects = gc.isenabled()
    gc.disable()
    try:
        warm = time.perf_counter() + warm_up
        while time.perf_counter() < warm:
            span(1)
        if not loops:
            loops = 1
            while loops < _MOST_LOOPS and span(loops) < shortest:
                loops *= 2
        begin()
        seconds = []
        for _ in range(samples):
            gc.collect(0)  # what the last sample left, so that its memory is free
            seconds.append(span(loops, meanwhile) / loops)
    finally:
        if collects:
            gc.enable()
    return Samples(seconds=seconds, loops=loops)


#: Seconds in all: a run waits for them.
_SECONDS = 0.1
#: Rows of the smallest matrix, short on any machine, and of the largest, which fills a GPU.
_SMALLEST, _LARGEST = 128, 8192
#: The best of them counts.
_SAMPLES = 3


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square matmul in ``dtype``: the best of several, of growing size as long as the next
    size fits into a tenth of a second in total. The first of each size, for which a GPU loads code, does
    not count. Global generators are left as they are."""
    watch = stopwatch(device)
    generator = torch.Generator(device)
    rate = 0.0
    spent = 0.0
    size = _SMALLEST
    while True:
        matrix = torch.randn(size, size, generator=generator, device=device).to(dtype)
        seconds = [watch.seconds(partial(torch.mm, matrix, matrix)) for _ in range(1 + _SAMPLES)]
        best = min(seconds[1:])
        rate = max(rate, 2 * size**3 / best)
        spent += _SAMPLES * best
        if size == _LARGEST or spent + 8 * _SAMPLES * best > _SECONDS:
            return rate
        size *= 2
