"""Speed-up at equal loss in seconds, from the training steps that `modbench time` measured."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.isoflop import Interval, Optimum
from modbench.analysis.noise import Array
from modbench.records.record import CellRecord, TimingRecord, canonical_json
from modbench.report.leaderboard.scheme import split_label
from modbench.report.timing.table import TimingTable
from modbench.report.timing.values import newest_run

#: Settings of training that the time of a step depends on.
_OF_A_STEP = ("sequence", "batch", "precision")


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
    def of(cls, timings: Sequence[TimingRecord], cells: Sequence[CellRecord]) -> "StepTimes":
        """The steps of the newest run of ``timings`` whose router, shape and batch are those of one of
        ``cells``, which tell the active parameters."""
        suite = str(cells[0].suite["name"])
        if not timings:
            return cls({}, suite)
        run = newest_run(timings)
        routers = {one.cell["router"]["label"]: one.cell["router"] for one in run if one.cell["router"]}
        sizes = {
            _step(record.cell["router"], record.cell["model"], record.cell["train"]): size
            for record in cells
            if (size := record.metrics.get("active_parameters")) is not None
        }
        measured: dict[str, set[tuple[float, float, str]]] = defaultdict(set)
        for row in (row for row in TimingTable(run).cases if row.phase == "train"):
            size = sizes.get(_step(routers[row.label], json.loads(row.model), json.loads(row.train)))
            if size is not None and row.seconds_median and row.flops_realised:
                seconds = row.seconds_median / row.flops_realised
                measured[split_label(row.label)[0]].add((size, seconds, row.marks))
        return cls({scheme: sorted(found) for scheme, found in measured.items()}, suite)

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
        found = {mark for _, _, marks in self.measured.get(scheme, ()) for mark in marks.split(", ")}
        return ", ".join(sorted(found - {""}))

    def _known(self, scheme: str) -> tuple[Array, Array]:
        found = self.measured.get(scheme, ())
        return np.array([one[0] for one in found], float), np.array([one[1] for one in found], float)


def _step(router: Mapping[str, Any], model: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    """Identity of a training step."""
    return canonical_json([router, model, {name: train.get(name) for name in _OF_A_STEP}])


def in_seconds(
    times: StepTimes, faster: SpeedUp, ours: Optimum, dense: Sequence[Optimum]
) -> SecondsSpeedUp | tuple[str, ...]:
    """The speed-up ``faster`` at the optimum ``ours`` in seconds: times the dense model's seconds per
    FLOP over the scheme's, each at its optimum. ``dense``: its optima by budget; at the budget at which
    it reaches the loss, its size is interpolated between them. Returns reasons if a time is missing."""
    known = sorted((one.budget, one.size) for one in dense if one.size is not None)
    budgets, sizes = np.log(np.array(known, float)).T
    needed = np.log(faster.factor * ours.budget)
    pairs = (
        (ours.scheme, float(ours.size or 0.0)),
        (dense[0].scheme, float(np.exp(np.interp(needed, budgets, sizes)))),
    )
    own, other = (times.at(*pair) for pair in pairs)
    if own is None or other is None:
        return tuple(dict.fromkeys(filter(None, (times.missing(*pair) for pair in pairs))))
    ratio = other / own
    interval = faster.interval and (faster.interval[0] * ratio, faster.interval[1] * ratio)
    marks = {mark for scheme, _ in pairs for mark in times.marks(scheme).split(", ")} - {""}
    return SecondsSpeedUp(
        factor=faster.factor * ratio,
        interval=interval,
        seconds_per_flop=own,
        dense_seconds_per_flop=other,
        marks=", ".join(sorted(marks)),
    )
