"""Speed-up at equal loss in seconds, from the training steps that `modbench time` measured."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.difference import Interval
from modbench.analysis.isoflop import Optimum
from modbench.analysis.noise import Array
from modbench.records.names import at_depth
from modbench.records.result import Place, Result
from modbench.report.timing.table import TimingTable, marks_of


@dataclass(frozen=True, kw_only=True)
class SecondsSpeedUp:
    """Seconds that the dense model needs for the scheme's loss, over the scheme's. The interval is that
    of the speed-up in FLOPs times the same ratio."""

    factor: float
    interval: Interval | None
    seconds_per_flop: float
    dense_seconds_per_flop: float


@dataclass(frozen=True)
class StepTimes:
    """Seconds per training FLOP by scheme, depth and size: (active parameters, seconds per FLOP) of
    each timed shape in ascending order."""

    measured: Mapping[Place, Sequence[tuple[float, float]]]
    suite: str  #: name, for the command that measures

    @classmethod
    def of(cls, table: TimingTable | None, results: Sequence[Result]) -> "StepTimes":
        """The steps of ``table`` whose scheme, shape and batch are those of one of ``results``, which
        tell the active parameters. Times with a mark (loaded, unstable, throttled) don't count, nor do
        those of a CPU with another number of threads than the runs had: that alone can turn a speed-up
        into a slow-down."""
        threads = {result.environment.get("threads") for result in results}
        timed = table.timings[0].environment if table else None
        if table is None or timed is None or not (timed["gpu"] or timed["threads"] in threads):
            return cls({}, str(results[0].suite["name"]))
        steps = {row["key"]: row for row in table.cases if row["case"] == "train"}
        measured: dict[Place, set[tuple[float, float]]] = defaultdict(set)
        for result in results:
            size, row = result.metrics.get("active_parameters"), steps.get(result.run.timed.key)
            if size is None or row is None or marks_of(row):
                continue
            if row["seconds_median"] and row["flops_realised"]:
                measured[result.place].add((size, row["seconds_median"] / row["flops_realised"]))
        ascending = {place: sorted(steps) for place, steps in measured.items()}
        return cls(ascending, str(results[0].suite["name"]))

    def at(self, place: Place, size: float) -> float | None:
        """Seconds per FLOP of ``place`` at ``size`` active parameters, interpolated linearly in log size
        between the timed shapes; None outside them."""
        sizes, seconds = self._known(place)
        if not len(sizes) or not sizes[0] <= size <= sizes[-1]:
            return None
        return float(np.interp(np.log(size), np.log(sizes), seconds))

    def missing(self, place: Place, size: float) -> str:
        """Why there is no time of ``place`` at ``size``, and what to do; empty if there is one."""
        remedy = f"(run: modbench time {self.suite})"
        sizes, _ = self._known(place)
        if not len(sizes):
            return f"the shapes of {at_depth(*place)} aren't timed {remedy}"
        if sizes[0] <= size <= sizes[-1]:
            return ""
        return (
            f"an optimum of {at_depth(*place)} has {size:.3g} active parameters, and its timed shapes "
            f"have {sizes[0]:.3g} to {sizes[-1]:.3g} {remedy}"
        )

    def _known(self, place: Place) -> tuple[Array, Array]:
        steps = self.measured.get(place, ())
        sizes, seconds = ([step[number] for step in steps] for number in (0, 1))
        return np.array(sizes, float), np.array(seconds, float)


def in_seconds(
    times: StepTimes, faster: SpeedUp, ours: Optimum, dense: Sequence[Optimum]
) -> SecondsSpeedUp | tuple[str, ...]:
    """The speed-up ``faster`` at the optimum ``ours`` in seconds: times the dense model's seconds per
    FLOP over the scheme's, each at its optimum. ``dense``: its optima by budget; at the budget at which
    it reaches the loss, its size is interpolated between them or, if they have several depths, its
    seconds per FLOP are. Returns reasons if a time is missing."""
    known = sorted(
        (optimum.budget, optimum.size, optimum.place) for optimum in dense if optimum.size is not None
    )
    budgets, sizes = np.log(np.array([point[:2] for point in known], float)).T
    needed = np.log(faster.factor * ours.budget)
    of_dense = [(place, float(size)) for _, size, place in known]
    if len({place for place, _ in of_dense}) == 1:
        of_dense = [(known[0][2], float(np.exp(np.interp(needed, budgets, sizes))))]
    pairs = ((ours.place, float(ours.size or 0.0)), *of_dense)
    seconds = [second for pair in pairs if (second := times.at(*pair)) is not None]
    if len(seconds) < len(pairs):
        return tuple(dict.fromkeys(filter(None, (times.missing(*pair) for pair in pairs))))
    scheme_seconds, *at_optima = seconds
    dense_seconds = at_optima[0]
    if len(at_optima) > 1:
        dense_seconds = float(np.interp(needed, budgets, at_optima))
    ratio = dense_seconds / scheme_seconds
    interval = faster.interval and (faster.interval[0] * ratio, faster.interval[1] * ratio)
    return SecondsSpeedUp(
        factor=faster.factor * ratio,
        interval=interval,
        seconds_per_flop=scheme_seconds,
        dense_seconds_per_flop=dense_seconds,
    )
