"""Ways of doing a thing, timed in turns, so that a neighbour's load on the machine hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from modbench.timing.system_load import SLACK, LoadMonitor

#: Takes what the turn's draw gave.
Way = Callable[..., object]
#: Untimed turns: their number, and the share of the seconds in which more of them run. A CPU's
#: bfloat16 matmuls are generated for each new number of rows, and routed rows vary in number.
WARM_UP, WARM_SHARE = 2, 0.15


def now() -> float:
    """Seconds, once the GPU has done all that it was given. The timer of all benchmarks."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Seconds of each way, turn by turn."""

    seconds: Mapping[str, Sequence[float]]

    def __len__(self) -> int:
        return min(map(len, self.seconds.values()))

    def ratios(self, way: str, other: str) -> list[float]:
        """The time of ``way`` over that of ``other``, for each turn."""
        return [a / b for a, b in zip(self.seconds[way], self.seconds[other], strict=True)]

    def median(self, way: str) -> float:
        return statistics.median(self.seconds[way])


class InTurns:
    """Times ways in turns: for ``seconds`` in all, and ``turns`` turns at least. ``loaded``: while they
    were timed, other people's work and these threads came to more than the cores."""

    def __init__(self, benchmark: BenchmarkFixture, *, seconds: float, turns: int) -> None:
        self._benchmark, self._seconds, self._turns = benchmark, seconds, turns
        self.loaded = False

    def __call__(
        self,
        ways: Mapping[str, Way],
        draw: Callable[[], tuple[Any, ...]] = tuple,
        *,
        before: Callable[[], object] = tuple,
    ) -> Turns:
        """Each turn draws new arguments and calls every way with them, and ``before`` ahead of each,
        which isn't timed. The first way's times are the benchmark's."""
        first, *others = ways

        def warm_up() -> float:
            drawn = draw()
            start = now()
            for way in ways.values():
                before()
                way(*drawn)
            return now() - start

        for _ in range(WARM_UP):
            each = warm_up()
        for _ in range(int(WARM_SHARE * self._seconds / each)):
            each = warm_up()
        turns, load = max(self._turns, int(self._seconds / each)), LoadMonitor()
        seconds: dict[str, list[float]] = {name: [] for name in others}

        def time_others() -> tuple[tuple[Any, ...], dict[str, Any]]:
            drawn = draw()
            for name in others:
                before()
                start = now()
                ways[name](*drawn)
                seconds[name].append(now() - start)
            before()
            return drawn, {}

        self._benchmark.pedantic(ways[first], setup=time_others, rounds=turns, iterations=1)
        state = load.state(torch.get_num_threads())
        # The load average has these threads in it, too.
        self.loaded |= state["others"] + state["threads"] > state["cores"] * (1 + SLACK)
        return Turns(seconds={first: list(self._benchmark.stats.stats.data), **seconds})
