"""Speed-up at equal loss in seconds, from the training steps that `modbench time` measured."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.difference import Interval
from modbench.analysis.isoflop import Optimum
from modbench.analysis.noise import Array
from modbench.records.result import Result
from modbench.report.timing.table import TimingTable


@dataclass(frozen=True, kw_only=True)
class SecondsSpeedUp:
    """Seconds that the dense model needs for the scheme's loss, over the scheme's. The interval is that
    of the speed-up in FLOPs times the same ratio; ``marks`` are reasons to doubt the times."""

    factor: float
    interval: Interval | None
    seconds_per_flop: float
    dense_seconds_per_flop: float
    marks: str


@dataclass(frozen=True)
class StepTimes:
    """Seconds per training FLOP by scheme and size: (active parameters, seconds per FLOP, marks) of each
    timed shape in ascending order."""

    measured: Mapping[str, Sequence[tuple[float, float, str]]]
    suite: str  #: name, for the command that measures

    @classmethod
    def of(cls, table: TimingTable | None, results: Sequence[Result]) -> "StepTimes":
        """The steps of ``table`` whose scheme, shape and batch are those of one of ``results``, which
        tell the active parameters."""
        steps = {row.key: row for row in (table.cases if table else ()) if row.phase == "train"}
        measured: dict[str, set[tuple[float, float, str]]] = defaultdict(set)
        for result in results:
            size, row = result.metrics.get("active_parameters"), steps.get(result.run.timed.key)
            if size is not None and row and row.seconds_median and row.flops_realised:
                seconds = row.seconds_median / row.flops_realised
                measured[result.scheme].add((size, seconds, row.marks))
        ascending = {scheme: sorted(steps) for scheme, steps in measured.items()}
        return cls(ascending, str(results[0].suite["name"]))

    def at(self, scheme: str, size: float) -> float | None:
        """Seconds per FLOP of ``scheme`` at ``size`` active parameters, interpolated linearly in log
        size between the timed shapes; None outside them."""
        sizes, seconds = self._known(scheme)
        if not len(sizes) or not sizes[0] <= size <= sizes[-1]:
            return None
        return float(np.interp(np.log(size), np.log(sizes), seconds))

    def missing(self, scheme: str, size: float) -> str:
        """Why there is no time of ``scheme`` at ``size``, and what to do; empty if there is one."""
        remedy = f"(run: modbench time {self.suite})"
        if not self.measured:
            return f"no shape of this suite is timed {remedy}"
        sizes, _ = self._known(scheme)
        if not len(sizes):
            return f"the shapes of {scheme} aren't timed {remedy}"
        if sizes[0] <= size <= sizes[-1]:
            return ""
        return (
            f"an optimum of {scheme} has {size:.3g} active parameters, and its timed shapes have "
            f"{sizes[0]:.3g} to {sizes[-1]:.3g} {remedy}"
        )

    def marks(self, scheme: str) -> str:
        """Reasons to doubt any time of ``scheme``."""
        doubts = {mark for _, _, marks in self.measured.get(scheme, ()) for mark in marks.split(", ")}
        return ", ".join(sorted(doubts - {""}))

    def _known(self, scheme: str) -> tuple[Array, Array]:
        steps = self.measured.get(scheme, ())
        sizes, seconds = ([step[number] for step in steps] for number in (0, 1))
        return np.array(sizes, float), np.array(seconds, float)


def in_seconds(
    times: StepTimes, faster: SpeedUp, ours: Optimum, dense: Sequence[Optimum]
) -> SecondsSpeedUp | tuple[str, ...]:
    """The speed-up ``faster`` at the optimum ``ours`` in seconds: times the dense model's seconds per
    FLOP over the scheme's, each at its optimum. ``dense``: its optima by budget; at the budget at which
    it reaches the loss, its size is interpolated between them. Returns reasons if a time is missing."""
    known = sorted((optimum.budget, optimum.size) for optimum in dense if optimum.size is not None)
    budgets, sizes = np.log(np.array(known, float)).T
    needed = np.log(faster.factor * ours.budget)
    pairs = (
        (ours.scheme, float(ours.size or 0.0)),
        (dense[0].scheme, float(np.exp(np.interp(needed, budgets, sizes)))),
    )
    scheme_seconds, dense_seconds = (times.at(*pair) for pair in pairs)
    if scheme_seconds is None or dense_seconds is None:
        return tuple(dict.fromkeys(filter(None, (times.missing(*pair) for pair in pairs))))
    ratio = dense_seconds / scheme_seconds
    interval = faster.interval and (faster.interval[0] * ratio, faster.interval[1] * ratio)
    marks = {mark for scheme, _ in pairs for mark in times.marks(scheme).split(", ")} - {""}
    return SecondsSpeedUp(
        factor=faster.factor * ratio,
        interval=interval,
        seconds_per_flop=scheme_seconds,
        dense_seconds_per_flop=dense_seconds,
        marks=", ".join(sorted(marks)),
    )
