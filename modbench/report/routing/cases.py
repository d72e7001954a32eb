"""Runs whose routing is drawn token by token: one of each scheme, its best or, in an isoFLOP sweep, the
one nearest to its optimum."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from typing import Any

from modbench.errors import several
from modbench.records.result import Result
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.entry import Entry

#: Largest number of runs in a figure.
MOST_CASES = 6


@dataclass(frozen=True)
class RoutingCase:
    """A run and its name in figures."""

    name: str
    record: Result

    @property
    def passage(self) -> dict[str, Any] | None:
        """The routing of its passage; None if none was recorded or nothing in it is routed."""
        passage: dict[str, Any] = self.record.routing.get("passage", {})
        return passage if passage.get("causal") or passage.get("experts") else None

    @property
    def has_experts(self) -> bool:
        """Return True if a layer of the run has experts and its passage was recorded."""
        routing = self.record.routing
        return "passage" in routing and bool(routing.get("causal", {}).get("experts"))

    def weights(self, rule: str) -> dict[int, dict[str, Any]]:
        """The histogram of router weights of each layer that has one."""
        layers = self.record.routing.get(rule, {}).get("depth", [])
        return {layer["layer"]: layer["gates"] for layer in layers if layer.get("gates")}


def with_passage(cases: Iterable[RoutingCase]) -> list[RoutingCase]:
    """The cases that have a passage, depth-routed ones first."""
    routed = [case for case in cases if case.passage]
    return sorted(routed, key=lambda case: not (case.passage or {})["causal"])


def with_weights(cases: Iterable[RoutingCase]) -> list[RoutingCase]:
    """The cases that have histograms of router weights."""
    return [case for case in cases if case.weights("causal")]


def cases_of_board(board: Leaderboard) -> list[RoutingCase]:
    """Of each scheme, the first finished seed of its best row in the last comparison, which is that of
    the largest budget."""
    best: dict[str, Entry] = {}
    for entry in board.entries:
        if entry.row.ok:
            scheme = entry.row.ok[0].scheme
            if scheme not in best or entry.comparison > best[scheme].comparison:
                best[scheme] = entry
    return [
        RoutingCase(entry.row.label + " (not ranked)" * (entry.position is None), entry.row.ok[0])
        for entry in best.values()
    ]


def cases_of_sweep(sweep: IsoFlopSuite) -> list[RoutingCase]:
    """Of each scheme, the first seed of the size nearest to its optimum at the largest budget; the size
    with the lowest loss if the curve has no interior optimum."""
    cases = []
    results = {(result.key, result.budget, result.scheme): result for result in sweep.results}
    points = [point for point in sweep.rows.points if point.seeds]
    for scheme in sweep.schemes:
        if not (budgets := [point.budget for point in points if point.scheme == scheme]):
            continue
        budget = max(budgets)
        best = next(row for row in sweep.best(budget) if row.scheme == scheme)
        sizes = [
            (abs(log(of.active_parameters / best.active_parameters)) if best.best else of.loss_min, of)
            for of in points
            if (of.scheme, of.budget) == (scheme, budget) and (of.depth == best.depth or not best.best)
        ]
        _, nearest = min(sizes, key=lambda size: size[0])
        runs = [
            run
            for run in sweep.rows.runs
            if (run.scheme, run.budget, run.loss is None) == (scheme, budget, False)
            and (run.depth, run.active_parameters) == (nearest.depth, nearest.active_parameters)
        ]
        first = min(runs, key=lambda run: run.seed)
        shape = f"width {first.width}, {several(first.layers, 'layer')}"
        name = f"{scheme}: {shape}, {budget:.3g} training FLOPs"
        cases.append(RoutingCase(name, results[first.key, budget, scheme]))
    return cases
