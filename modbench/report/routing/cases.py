"""Runs whose routing is drawn token by token: one of each scheme, its best or, in an isoFLOP sweep, the
one nearest to its optimum."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

from modbench.errors import several
from modbench.records.result import Result
from modbench.records.sections import FirstChoice, Passage, Selected
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.suite import Row, Suite

#: Largest number of runs in a figure.
MOST_CASES = 6


@dataclass(frozen=True)
class RoutingCase:
    """A run and its name in figures."""

    name: str
    record: Result

    @property
    def passage(self) -> Passage | None:
        """The routing of its passage; None if none was recorded or nothing in it is routed."""
        passage = self.record.routing and self.record.routing.passage
        return passage if passage and (passage.causal or passage.experts) else None

    @property
    def has_experts(self) -> bool:
        """Return True if a layer of the run has experts and its passage was recorded."""
        routing = self.record.routing
        return bool(routing and routing.passage and routing.causal.experts)


def with_passage(cases: Iterable[RoutingCase]) -> list[RoutingCase]:
    """The cases that have a passage, depth-routed ones first."""
    routed = [case for case in cases if case.passage]
    return sorted(routed, key=lambda case: not (case.passage and case.passage.causal))


def cases_of(suite: Suite) -> list[RoutingCase]:
    """The cases of ``suite``: of an isoFLOP suite by its curves; else, of each scheme, the first
    finished seed of its best row in the last comparison, which is that of the largest budget."""
    if suite.sweep:
        return _of_sweep(suite.sweep)
    best: dict[str, Row] = {}
    for row in suite.rows:
        if row["seeds"]:
            scheme = suite.first(row).scheme
            if scheme not in best or row["comparison"] > best[scheme]["comparison"]:
                best[scheme] = row
    return [
        RoutingCase(of["row"] + " (not ranked)" * (of["position"] is None), suite.finished(of)[0])
        for of in best.values()
    ]


def _of_sweep(sweep: IsoFlopSuite) -> list[RoutingCase]:
    """Of each scheme, the first seed of the size nearest to its optimum at the largest budget; the size
    with the lowest loss if the curve has no interior optimum."""
    cases = []
    results = {(of.key, float(of.budget), of.scheme): of for of in sweep.results}
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
        cases.append(RoutingCase(name, results[first.key, float(budget), scheme]))
    return cases


def layers_of(case: RoutingCase) -> list[tuple[int, Selected | FirstChoice | None]]:
    """All layers of a case with a passage, from the first; None: a dense one."""
    assert case.passage is not None
    layers: Sequence[Selected | FirstChoice] = case.passage.causal or case.passage.experts
    routed = {layer.layer: layer for layer in layers}
    count = max(case.record.run.model.layers, max(routed) + 1)
    return [(number, routed.get(number)) for number in range(count)]
