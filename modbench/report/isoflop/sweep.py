"""IsoFLOP sweep of a suite: its records as runs, the optima of all schemes, and their tables."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from modbench.analysis.comparison import SpeedUp, difference, family, speed_up
from modbench.analysis.difference import INTERIM, Difference
from modbench.analysis.isoflop import FITS, HEADLINE, IsoFlop, Optimum, analyse
from modbench.analysis.learning_rate import RateChoice, choose_rate, rate_at
from modbench.analysis.noise import Run
from modbench.errors import several
from modbench.records.result import Place, Result
from modbench.report.isoflop.law import LawCheck, check_law, exponent_of
from modbench.report.isoflop.seconds import SecondsSpeedUp, StepTimes, in_seconds
from modbench.report.leaderboard.board import BEST, DENSE, NOT_SEPARABLE, Board
from modbench.report.leaderboard.rows import Row
from modbench.report.timing.table import TimingTable
from modbench.report.timing.values import processor_types

#: Metric on the axis of the curves.
SIZE = "active_parameters"


@dataclass(frozen=True)
class Rates:
    """Losses of the learning rates tried for a scheme at its middle size and budget; None: lost."""

    plan: dict[str, Any]  #: the entry ``isoflop`` of a record's suite
    losses: dict[float, float | None]
    statuses: Mapping[float, str]  #: of the same runs
    choice: RateChoice
    exponent: float  #: of the law for other widths, after its check

    def at(self, width: int) -> float | None:
        """The rate of a model of ``width``; None before any was chosen."""
        if self.choice.best is None or self.choice.verdict == "open":
            return None
        return rate_at(self.choice.best, self.plan["middle_width"], width, self.exponent)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One optimum with its comparisons to the dense model and to the best scheme."""

    optimum: Optimum
    position: int | None  #: in the order of the losses; None for a scheme that is not ranked
    group: str  #: `BEST`, `NOT_SEPARABLE` or empty
    to_best: Difference | None  #: to the scheme of least loss at this budget
    difference: Difference | None  #: to the dense model; without a verdict if it is in no family
    same_processor: bool  #: all runs of the scheme and of the dense model ran on one processor type
    speed_up: SpeedUp | None
    seconds: SecondsSpeedUp | None
    seconds_missing: tuple[str, ...]  #: why there is a speed-up in FLOPs and none in seconds


@dataclass(frozen=True)
class Sweep:
    """The results of a suite with isoFLOP grids; the schemes that may not be ranked, with the reason;
    and the times of its schemes."""

    cells: tuple[Result, ...]
    unranked: Mapping[str, str]
    timings: TimingTable | None = None

    @cached_property
    def rates(self) -> dict[Place, Rates]:
        """The learning rates of each scheme and depth."""
        rates = {}
        for place, records in self._by_place.items():
            plan = _newest_plan(records)
            tried = {
                record.learning_rate: record
                for record in records
                if record.width == plan["middle_width"]
                and record.budget == plan["middle_budget"]
                and record.seed == plan["seed"]
                and record.status != "failed"
            }
            losses = {rate: _loss(record) for rate, record in sorted(tried.items())}
            statuses = {rate: record.status for rate, record in tried.items()}
            choice = choose_rate(plan["learning_rates"], losses, plan["extensions"])
            exponent = exponent_of(records, plan, choice.best)
            rates[place] = Rates(plan, losses, statuses, choice, exponent)
        return rates

    @cached_property
    def _by_place(self) -> dict[Place, list[Result]]:
        """The records of each scheme and depth."""
        by_place: dict[Place, list[Result]] = defaultdict(list)
        for record in sorted(self.cells, key=lambda record: (record.scheme, record.depth or 0)):
            by_place[record.place].append(record)
        return by_place

    @cached_property
    def schemes(self) -> list[str]:
        return sorted({scheme for scheme, _ in self.rates})

    @cached_property
    def depths(self) -> list[int]:
        """The depths of the curves; empty: the suite has one depth."""
        return sorted({depth for _, depth in self.rates if depth is not None})

    @property
    def stated(self) -> Sequence[Mapping[str, Any]]:
        """The comparisons that the suite states; empty: those with the dense and the best scheme."""
        return self.cells[0].suite["compare"]

    @property
    def untold(self) -> str:
        """Why no difference has a verdict; empty if the suite's runs are finished."""
        return INTERIM if self.cells[0].suite["left"] else ""

    @cached_property
    def margin(self) -> float:
        """The difference within which schemes are equivalent, of the suite's newest version."""
        return float(_newest_plan(self.cells)["margin"])

    def is_trial(self, record: Result) -> bool:
        """Return True if ``record`` only tries a learning rate: another one belongs to its size, or its
        seed is that of the learning rates only."""
        rates = self.rates[record.place]
        if record.seed == rates.plan["seed"] and not rates.plan.get("seed_on_curve", True):
            return True
        return bool(record.learning_rate != rates.at(record.width))

    @cached_property
    def points(self) -> list[Result]:
        """The records of the curves, with those that have no loss."""
        return [record for record in self.cells if not self.is_trial(record)]

    def curve_records(self) -> list[Result]:
        """The finished records that make the curves."""
        return [record for record in self.points if _loss(record) is not None]

    def sizes(self, place: Place, budget: int) -> str:
        """The number of sizes on the curve of ``place`` at ``budget`` and the lost ones, such as "4 of 5
        sizes, w60 diverged"; empty if the curve has all sizes. Older records don't state how many were
        planned."""
        statuses: dict[int, set[str]] = defaultdict(set)
        for record in self.points:
            if (record.place, record.budget) == (place, budget):
                statuses[record.width].add(record.status)
        lost = {width: ended for width, ended in sorted(statuses.items()) if "ok" not in ended}
        done, planned = len(statuses) - len(lost), self.rates[place].plan.get("sizes")
        if done == planned and not lost:
            return ""
        number = f"{done} of {several(planned, 'size')}" if planned else several(done, "size")
        return ", ".join(
            [number, *(f"w{width} {'/'.join(sorted(ended))}" for width, ended in lost.items())]
        )

    def without_curve(self, budget: int) -> dict[Place, str]:
        """The schemes and depths without a finished run on the curve of ``budget``, with the reason."""
        reasons = {}
        for place, rates in self.rates.items():
            if self.optimum(place[0], budget, HEADLINE, place[1]) is None:
                if rates.choice.verdict == "open":
                    reasons[place] = "its learning rate is not chosen yet"
                elif rates.choice.best is None:
                    reasons[place] = (
                        f"all learning rates: {'/'.join(sorted({*rates.statuses.values()}))}"
                    )
                else:
                    reasons[place] = self.sizes(place, budget)
        return reasons

    def is_interior(self, place: Place) -> bool:
        """Return True if smaller and larger learning rates of ``place`` are worse than the chosen."""
        return self.rates[place].choice.verdict == "interior"

    @property
    def has_curves(self) -> bool:
        return bool(self.curve_records())

    @property
    def runs(self) -> list[Run]:
        """The runs of the curves, with active parameters on their axis."""
        return [
            Run(
                scheme=record.scheme,
                budget=record.budget,
                size=record.metrics[SIZE],
                tokens=record.metrics["train_tokens"],
                loss=record.metrics["heldout_loss"],
                seed=record.seed,
                depth=record.depth,
                trunk=record.key if record.run.schedule.shares_trunk else None,
            )
            for record in self.curve_records()
        ]

    @cached_property
    def analysis(self) -> IsoFlop:
        """The analysis with active parameters on the axis."""
        return analyse(self.runs)

    @cached_property
    def budgets(self) -> list[int]:
        return sorted({record.budget for record in self.cells})

    @cached_property
    def bits_per_nat_and_byte(self) -> float:
        """Bits per byte of one nat per token, equal for all cells of one text and tokenizer."""
        ratios = [
            record.metrics["heldout_bits_per_byte"] / record.metrics["heldout_loss"]
            for record in self.curve_records()
        ]
        return float(np.median(ratios))

    @cached_property
    def _lines(self) -> dict[str, dict[int, list[Line]]]:
        return {fit: self._compare(fit) for fit in FITS}

    def lines(self, budget: int, fit: str = HEADLINE) -> list[Line]:
        """The optima of all schemes at ``budget``: those that are ranked by loss, then the others."""
        return self._lines[fit][budget]

    def is_comparable(self, place: Place) -> bool:
        """Return True if the scheme of ``place`` may be ranked at its depth: it passes the audit, and
        its learning rate is not at the edge."""
        return place[0] not in self.unranked and self.is_interior(place)

    def _compare(self, fit: str) -> dict[int, list[Line]]:
        """The lines of ``fit`` by budget. The comparisons of ranked schemes with the dense model, at all
        budgets, are one family of tests; those with the best scheme of a budget are another. A suite
        that states its pairs has those families only."""
        optima = [optimum for optimum in self.analysis.optima if optimum.fit == fit]
        optima.sort(key=lambda at: (at.loss is None, at.loss or 0.0, at.scheme))
        ranked: dict[float, list[str]] = defaultdict(list)
        for at in optima:
            if at.loss is not None and self.is_comparable(at.place):
                ranked[at.budget].append(at.scheme)
        rows = [(budget, scheme) for budget, row in ranked.items() for scheme in row]
        rows = [] if self.stated or fit != HEADLINE else rows
        against_dense = [(*row, DENSE, None) for row in rows if row[1] != DENSE]
        against_best = [(*row, ranked[row[0]][0], None) for row in rows if row[1] != ranked[row[0]][0]]
        to_dense = family(self.analysis, against_dense, self.margin, self.untold)
        to_best = family(self.analysis, against_best, self.margin, self.untold)
        lines: dict[int, list[Line]] = {budget: [] for budget in self.budgets}
        for at in sorted(optima, key=lambda at: at.scheme not in ranked[at.budget]):
            row, order = (at.budget, at.scheme), ranked[at.budget]
            minus = to_dense.get((*row, DENSE, None))
            if minus is None and at.scheme != DENSE and self.optimum(DENSE, at.budget, fit):
                minus = difference(self.analysis, at.scheme, DENSE, at.budget, fit, self.margin)
            lines[int(at.budget)].append(
                self._line(
                    at,
                    order.index(at.scheme) + 1 if at.scheme in order else None,
                    minus,
                    to_best.get((*row, order[0], None)) if order else None,
                )
            )
        return lines

    def _line(
        self, optimum: Optimum, position: int | None, minus: Difference | None, best: Difference | None
    ) -> Line:
        scheme, budget = optimum.scheme, int(optimum.budget)
        group = ""
        if position == 1 and optimum.fit == HEADLINE and not (self.stated or self.untold):
            group = BEST if self.analysis.noise.pooled is not None else ""
        elif position and best is not None and best.verdict:
            group = "" if best.verdict == "worse" else NOT_SEPARABLE
        faster = None
        if scheme != DENSE and self.optimum(DENSE, budget, optimum.fit):
            faster = speed_up(self.analysis, scheme, DENSE, budget, optimum.fit)
        seconds = self._in_seconds(optimum, faster)
        return Line(
            optimum=optimum,
            position=position,
            group=group,
            to_best=best,
            difference=minus,
            same_processor=len(self.processors(budget, scheme, DENSE)) < 2,
            speed_up=faster,
            seconds=None if isinstance(seconds, tuple) else seconds,
            seconds_missing=seconds if isinstance(seconds, tuple) else (),
        )

    def processors(self, budget: int, *schemes: str, depth: int | None = None) -> list[str]:
        """The processor types of the runs on the curves of ``schemes`` at ``budget``, of ``depth`` or of
        all depths."""
        return processor_types(
            record
            for record in self.curve_records()
            if record.budget == budget and record.scheme in schemes and depth in (None, record.depth)
        )

    @cached_property
    def times(self) -> StepTimes:
        """The training steps that were timed."""
        return StepTimes.of(self.timings, self.cells)

    def _in_seconds(self, optimum: Optimum, faster: SpeedUp | None) -> SecondsSpeedUp | tuple[str, ...]:
        if faster is None or not self.times.measured:
            return ()
        of_fit = [at for at in self.analysis.optima if at.fit == optimum.fit]
        return in_seconds(self.times, faster, optimum, [at for at in of_fit if at.scheme == DENSE])

    def optimum(self, scheme: str, budget: float, fit: str, depth: int | None = None) -> Optimum | None:
        """The optimum at ``depth`` layers or at the best depth; None if it has no run at ``budget``."""
        try:
            return self.analysis.optimum(scheme, budget, fit, depth)
        except KeyError:
            return None

    def laws(self, place: Place) -> list[LawCheck]:
        """The checks of the learning rate's law."""
        rates = self.rates[place]
        return check_law(self._by_place[place], rates.plan, rates.at)

    def laws_stated(self, place: Place) -> list[LawCheck]:
        """The checks of the law that the suite states, if they led to another exponent."""
        rates = self.rates[place]
        if rates.exponent == rates.plan["exponent"]:
            return []
        stated = replace(rates, exponent=rates.plan["exponent"])
        return check_law(self._by_place[place], rates.plan, stated.at)

    def law(self, place: Place) -> LawCheck | None:
        """The check at which the law loses most; None if it was not checked."""
        return max(self.laws(place), key=lambda check: check.lost, default=None)

    def law_fails(self, place: Place) -> LawCheck | None:
        """The check of the learning rate's law if it loses more than the noise floor."""
        check, floor = self.law(place), self.noise_floor(place[0])
        return check if check and floor is not None and check.lost > floor else None

    def forward_flops(self, optimum: Optimum) -> float | None:
        """Nominal forward FLOPs per token at ``optimum``, between those of its neighbours."""
        if optimum.size is None:
            return None
        pairs = sorted(
            {
                (record.metrics["active_parameters"], record.metrics["forward_flops_per_token"])
                for record in self.curve_records()
                if (record.place, record.budget) == (optimum.place, optimum.budget)
            }
        )
        sizes, flops = np.log(np.array(pairs, float)).T
        return float(np.exp(np.interp(np.log(optimum.size), sizes, flops)))

    def noise_floor(self, scheme: str) -> float | None:
        """Two standard deviations of the loss of one run between seeds, in nats per token."""
        spread = self.analysis.noise.of(scheme)
        return None if spread is None else 2 * spread.sd

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(record.key for record in self.curve_records())

    def on_curve(self, row: Row) -> dict[str, bool]:
        """Column of leaderboard.csv: True if ``row`` is a point of a curve, False if it only tries a
        learning rate or has no finished run."""
        return {"on_curve": any(result.key in self._keys for result in row["_results"])}


def _loss(record: Result) -> float | None:
    """The held-out loss; None unless the run is finished."""
    return record.metrics.get("heldout_loss") if record.status == "ok" else None


def _newest_plan(records: Sequence[Result]) -> dict[str, Any]:
    """The entry ``isoflop`` of the newest suite among ``records``."""
    newest = max(records, key=lambda record: (record.suite["rank"], record.key))
    return dict(newest.isoflop or {})


def sweep_of(
    records: Sequence[Result], board: Board, timings: TimingTable | None = None
) -> Sweep | None:
    """The isoFLOP sweep of ``records``; None if there is none. ``board``: their table, whose audits tell
    which schemes may be ranked. ``timings``: of the suite."""
    # A sweep at work, or stopped between the two, has trained a run and not measured its loss.
    done = (of for of in records if of.status != "ok" or "heldout_loss" in of.metrics)
    cells = tuple(record for record in done if record.isoflop)
    unranked = {}
    for row in board.rows:
        if len(row["_ok"]) == len(row["_results"]) and row["_why"]:
            unranked[row["_first"].scheme] = row["_why"]
    return Sweep(cells, unranked, timings) if cells else None
