"""The records of an isoFLOP suite as the frame of its curves."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pandas as pd

from modbench.analysis.curves import Curves, curves_of
from modbench.analysis.frames import DENSE, tuples_of
from modbench.analysis.isoflop import HEADLINE, Place
from modbench.analysis.pairs import typed
from modbench.records.record import canonical_json
from modbench.records.result import Result
from modbench.report.runs import METRIC_COLUMNS
from modbench.report.table import rounded
from modbench.report.times import PROCESSOR, machine_in_words

_TYPES = {
    **dict.fromkeys(("scheme", "label", "router", "status", "key", "processor", "settings"), "string"),
    **dict.fromkeys(("width", "layers", "depth", "budget", "seed"), "Int64"),
    "learning_rate": "Float64",
    **dict.fromkeys(METRIC_COLUMNS, "Float64"),
}


def curve_runs(results: Sequence[Result], runs: pd.DataFrame) -> pd.DataFrame:
    """``runs``, the frame of ``results``, with what the curves need: processor types by the parts that
    all runs state, and ``settings``, all of a run but its router."""
    parts = [part for part in PROCESSOR if part != "instructions"]
    if all("instructions" in result.record.environment for result in results):
        parts = [*PROCESSOR]
    settings = ({**of.record.run, "router": None, "budget": of.budget} for of in results)
    frame = runs.assign(
        processor=[machine_in_words(result.record.environment, parts) for result in results],
        settings=[canonical_json(of) for of in settings],
    )
    return typed(frame[[*_TYPES]], _TYPES)


@dataclass(frozen=True)
class IsoFlopSuite:
    """The ``results`` of an isoFLOP suite and its curves. ``unranked``: the schemes that may not be
    ranked, with the reason."""

    results: Sequence[Result]
    curves: Curves
    unranked: Mapping[str, str]

    def shown(self) -> "IsoFlopSuite":
        """The suite as all files of a report show it: rounded once (`rounded`)."""
        frames = {name: rounded(frame) for name, frame in self._frames.items()}
        return replace(self, curves=replace(self.curves, **frames))

    @property
    def _frames(self) -> dict[str, pd.DataFrame]:
        return {name: of for name, of in vars(self.curves).items() if isinstance(of, pd.DataFrame)}

    @cached_property
    def rows(self) -> SimpleNamespace:
        """The rows of the frames of ``curves``, with None for what is missing."""
        return SimpleNamespace(**{name: tuples_of(frame) for name, frame in self._frames.items()})

    @cached_property
    def to_dense(self) -> dict[tuple[int, str, int | None], Any]:
        """The differences to the dense model by budget, scheme and depth; those of its family first."""
        pairs = [of for of in self.rows.pairs if of.other == DENSE and of.value is not None]
        return {(pair.budget, pair.scheme, pair.depth): pair for pair in reversed(pairs)}

    @cached_property
    def schemes(self) -> list[str]:
        return sorted({row.scheme for row in self.rows.optima})

    @cached_property
    def budgets(self) -> list[int]:
        return sorted({row.budget for row in self.rows.optima})

    @cached_property
    def depths(self) -> list[int]:
        """The depths of the curves; empty: the suite has one depth."""
        return sorted({row.depth for row in self.rows.optima if row.depth is not None})

    @cached_property
    def has_curves(self) -> bool:
        return bool(self.curves.runs["loss"].notna().any())

    def best(self, budget: int, fit: str = HEADLINE) -> list[Any]:
        """The optimum of each scheme at its best depth, those that are ranked first; of a scheme without
        an optimum, its first curve."""
        rows = [row for row in self.rows.optima if (row.budget, row.fit) == (budget, fit)]
        rows.sort(key=lambda row: (not row.best, row.minimum is None))
        first: dict[str, Any] = {}
        for row in rows:
            first.setdefault(row.scheme, row)
        return [*first.values()]

    @cached_property
    def on_curve(self) -> frozenset[str]:
        """Keys of the runs on the curves; others only try a learning rate."""
        return frozenset(self.curves.runs["key"])

    def with_on_curve(self, schemes: pd.DataFrame) -> pd.DataFrame:
        """``schemes`` with the column of leaderboard.csv that is True for a point of a curve, False for
        a row that only tries a learning rate or has no finished run."""
        runs = self.curves.runs
        done = {*runs.loc[runs["loss"].notna(), "key"]}
        on_curve = [not done.isdisjoint(keys.split()) for keys in schemes["records"]]
        schemes.insert([*schemes].index("processor"), "on_curve", pd.array(on_curve, "boolean"))
        return schemes


def isoflop_suite(
    results: Sequence[Result], runs: pd.DataFrame, unranked: Mapping[str, str]
) -> IsoFlopSuite | None:
    """The isoFLOP curves of ``results``, whose frame is ``runs``; None if the suite has none.
    ``unranked``: its schemes that may not be ranked, with the reason. A sweep at work, or stopped
    between the two, has trained a run and not measured its loss; such a run is left out."""
    known = [
        number
        for number, of in enumerate(results)
        if of.isoflop and (of.status != "ok" or "heldout_loss" in of.metrics)
    ]
    if not known:
        return None
    results = [results[number] for number in known]
    by_place: dict[Place, list[Result]] = defaultdict(list)
    for result in results:
        by_place[result.place].append(result)
    curves = curves_of(
        curve_runs(results, runs.iloc[known]),
        {place: _newest_plan(of) for place, of in by_place.items()},
        margin=float(_newest_plan(results)["margin"]),
        compare=results[0].suite["compare"],
        interim=bool(results[0].suite["left"]),
        unranked=unranked,
    )
    return IsoFlopSuite(results, curves, unranked)


def _newest_plan(results: Sequence[Result]) -> Mapping[str, Any]:
    """The entry ``isoflop`` of the newest suite among ``results``."""
    newest = max(results, key=lambda result: (result.suite["rank"], result.key))
    return newest.isoflop or {}
