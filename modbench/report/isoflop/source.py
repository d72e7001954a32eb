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
from modbench.analysis.isoflop import HEADLINE
from modbench.analysis.pairs import typed
from modbench.records.metrics import METRICS
from modbench.records.record import canonical_json
from modbench.records.result import Place, Result
from modbench.report.frame import results_frame
from modbench.report.leaderboard.board import Board
from modbench.report.leaderboard.rows import Row
from modbench.report.table import rounded
from modbench.report.timing.values import PROCESSOR, machine_in_words

_TYPES = {
    **dict.fromkeys(("scheme", "label", "router", "status", "key", "processor", "settings"), "string"),
    **dict.fromkeys(("width", "layers", "depth", "budget", "seed"), "Int64"),
    "learning_rate": "Float64",
    **dict.fromkeys(METRICS, "Float64"),
}


def curve_runs(results: Sequence[Result]) -> pd.DataFrame:
    """The results frame with what the curves need: processor types by the parts that all runs state, and
    ``settings``, all of a run but its router."""
    parts = [part for part in PROCESSOR if part != "instructions"]
    if all("instructions" in result.environment for result in results):
        parts = [*PROCESSOR]
    settings = ({**of.record.run, "router": None, "budget": of.budget} for of in results)
    frame = results_frame(results).assign(
        processor=[machine_in_words(result.environment, parts) for result in results],
        settings=[canonical_json(of) for of in settings],
    )
    return typed(frame[[*_TYPES]], _TYPES)


def on_curves(results: Sequence[Result]) -> list[Result]:
    """The results that belong to isoFLOP grids. A sweep at work, or stopped between the two, has trained
    a run and not measured its loss; such a run is left out."""
    done = (of for of in results if of.status != "ok" or "heldout_loss" in of.metrics)
    return [result for result in done if result.isoflop]


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
        pairs = [pair for pair in self.rows.pairs if pair.other == DENSE]
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
    def _done(self) -> frozenset[str]:
        runs = self.curves.runs
        return frozenset(runs.loc[runs["loss"].notna(), "key"])

    @cached_property
    def _on_curve(self) -> frozenset[str]:
        return frozenset(self.curves.runs["key"])

    def on_curve(self, row: Row) -> dict[str, bool]:
        """Column of leaderboard.csv: True if ``row`` is a point of a curve, False if it only tries a
        learning rate or has no finished run."""
        return {"on_curve": any(result.key in self._done for result in row["_results"])}

    def is_trial(self, result: Result) -> bool:
        """Return True if ``result`` only tries a learning rate."""
        return result.key not in self._on_curve


def isoflop_suite(results: Sequence[Result], unranked: Mapping[str, str]) -> IsoFlopSuite | None:
    """The isoFLOP curves of a suite; None if it has none. ``unranked``: its schemes that may not be
    ranked, with the reason."""
    if not (results := on_curves(results)):
        return None
    by_place: dict[Place, list[Result]] = defaultdict(list)
    for result in results:
        by_place[result.place].append(result)
    curves = curves_of(
        curve_runs(results),
        {place: _newest_plan(of) for place, of in by_place.items()},
        margin=float(_newest_plan(results)["margin"]),
        compare=results[0].suite["compare"],
        interim=bool(results[0].suite["left"]),
        unranked=unranked,
    )
    return IsoFlopSuite(results, curves, unranked)


def unranked_schemes(board: Board) -> dict[str, str]:
    """The schemes that may not be ranked, with the reason."""
    rows = (row for row in board.rows if len(row["_ok"]) == len(row["_results"]))
    return {row["_first"].scheme: row["_why"] for row in rows if row["_why"]}


def _newest_plan(results: Sequence[Result]) -> Mapping[str, Any]:
    """The entry ``isoflop`` of the newest suite among ``results``."""
    newest = max(results, key=lambda result: (result.suite["rank"], result.key))
    return newest.isoflop or {}
