"""IsoFLOP sweep of a suite: its records as runs, the optima of all schemes, and their tables."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from modbench.analysis.comparison import Difference, SpeedUp, difference, shared_ranks, speed_up
from modbench.analysis.isoflop import FITS, IsoFlop, Optimum, analyse
from modbench.analysis.learning_rate import RateChoice, choose_rate, rate_at
from modbench.analysis.noise import Run
from modbench.errors import several
from modbench.records.result import Result
from modbench.report.isoflop.seconds import SecondsSpeedUp, StepTimes, in_seconds
from modbench.report.leaderboard.board import Entry, Leaderboard
from modbench.report.timing.table import TimingTable

#: Metrics that a curve can have on its axis.
SIZES = ("active_parameters", "parameters", "forward_flops_per_token")
#: The fit of the page's table; the others are columns of the CSV.
HEADLINE = "parabola"
DENSE = "vanilla"
#: Learning rates at one size that check the law.
LEAST_RATES = 3


@dataclass(frozen=True)
class Rates:
    """Losses of the learning rates tried for a scheme at its middle size and budget; None: lost."""

    plan: dict[str, Any]  #: the entry ``isoflop`` of a record's suite
    losses: dict[float, float | None]
    statuses: Mapping[float, str]  #: of the same runs
    choice: RateChoice

    def at(self, width: int) -> float | None:
        """The rate of a model of ``width``; None before any was chosen."""
        if self.choice.best is None or self.choice.verdict == "open":
            return None
        return rate_at(self.choice.best, self.plan["middle_width"], width, self.plan["exponent"])


@dataclass(frozen=True, kw_only=True)
class Line:
    """One optimum with its comparisons to the dense model."""

    optimum: Optimum
    rank: int | None
    difference: Difference | None
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
    def rates(self) -> dict[str, Rates]:
        """The learning rates of each scheme."""
        by_scheme: dict[str, list[Result]] = defaultdict(list)
        for record in self.cells:
            by_scheme[record.scheme].append(record)
        found = {}
        for scheme, records in sorted(by_scheme.items()):
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
            found[scheme] = Rates(plan, losses, statuses, choice)
        return found

    @cached_property
    def margin(self) -> float:
        """The difference within which schemes are equivalent, of the suite's newest version."""
        return float(_newest_plan(self.cells)["margin"])

    def is_trial(self, record: Result) -> bool:
        """Return True if ``record`` only tries a learning rate: another one belongs to its size, or its
        seed is that of the learning rates only."""
        rates = self.rates[record.scheme]
        if record.seed == rates.plan["seed"] and not rates.plan.get("seed_on_curve", True):
            return True
        return bool(record.learning_rate != rates.at(record.width))

    @cached_property
    def points(self) -> list[Result]:
        """The records of the curves, with those that have no loss."""
        return [one for one in self.cells if not self.is_trial(one)]

    def curve_records(self) -> list[Result]:
        """The finished records that make the curves."""
        return [one for one in self.points if _loss(one) is not None]

    def sizes(self, scheme: str, budget: int) -> str:
        """The number of sizes on a curve and the lost ones, such as "4 of 5 sizes, w60 diverged"; empty
        if the curve has all sizes. Older records don't state how many were planned."""
        statuses: dict[int, set[str]] = defaultdict(set)
        for one in self.points:
            if (one.scheme, one.budget) == (scheme, budget):
                statuses[one.width].add(one.status)
        lost = {width: found for width, found in sorted(statuses.items()) if "ok" not in found}
        done, planned = len(statuses) - len(lost), self.rates[scheme].plan.get("sizes")
        if done == planned and not lost:
            return ""
        number = f"{done} of {several(planned, 'size')}" if planned else several(done, "size")
        return ", ".join(
            [number, *(f"w{width} {'/'.join(sorted(found))}" for width, found in lost.items())]
        )

    def without_curve(self, budget: int) -> dict[str, str]:
        """The schemes without a finished run on the curves of ``budget``, with the reason."""
        found = {}
        for scheme, rates in self.rates.items():
            if self.optimum(scheme, budget, HEADLINE) is None:
                if rates.choice.verdict == "open":
                    found[scheme] = "its learning rate is not chosen yet"
                elif rates.choice.best is None:
                    found[scheme] = f"all learning rates: {'/'.join(sorted({*rates.statuses.values()}))}"
                else:
                    found[scheme] = self.sizes(scheme, budget)
        return found

    def is_interior(self, scheme: str) -> bool:
        """Return True if smaller and larger learning rates of ``scheme`` are worse than the chosen."""
        return self.rates[scheme].choice.verdict == "interior"

    @property
    def has_curves(self) -> bool:
        return bool(self.curve_records())

    def runs(self, size: str = SIZES[0]) -> list[Run]:
        """The runs of the curves, with the metric ``size`` on their axis."""
        return [
            Run(
                scheme=record.scheme,
                budget=record.budget,
                size=record.metrics[size],
                tokens=record.metrics["train_tokens"],
                loss=record.metrics["heldout_loss"],
                seed=record.seed,
                trunk=record.key if record.run.schedule.shares_trunk else None,
            )
            for record in self.curve_records()
        ]

    @cached_property
    def analysis(self) -> IsoFlop:
        """The analysis with active parameters on the axis."""
        return analyse(self.runs())

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
    def _lines(self) -> dict[tuple[int, str], list[Line]]:
        return {(budget, fit): self._compare(budget, fit) for budget in self.budgets for fit in FITS}

    def lines(self, budget: int, fit: str = HEADLINE) -> list[Line]:
        """The optima of all schemes at ``budget``, ranked by their intervals, best first."""
        return self._lines[budget, fit]

    def _compare(self, budget: int, fit: str) -> list[Line]:
        optima = [one for one in self.analysis.optima if (one.budget, one.fit) == (budget, fit)]
        ranks = shared_ranks(
            {
                one.scheme: one.loss_interval
                for one in optima
                if one.loss_interval is not None
                and one.scheme not in self.unranked
                and self.is_interior(one.scheme)
            }
        )
        dense = any(one.scheme == DENSE for one in optima)
        lines = []
        for one in optima:
            compared = dense and one.scheme != DENSE
            pair = (self.analysis, one.scheme, DENSE, budget, fit)
            faster = speed_up(*pair) if compared else None
            seconds = self._in_seconds(one, faster)
            lines.append(
                Line(
                    optimum=one,
                    rank=ranks.get(one.scheme),
                    difference=difference(*pair, self.margin) if compared else None,
                    speed_up=faster,
                    seconds=None if isinstance(seconds, tuple) else seconds,
                    seconds_missing=seconds if isinstance(seconds, tuple) else (),
                )
            )
        inf = float("inf")
        return sorted(lines, key=lambda line: (line.rank or inf, line.optimum.loss or inf))

    @cached_property
    def times(self) -> StepTimes:
        """The training steps that were timed."""
        return StepTimes.of(self.timings, self.cells)

    def _in_seconds(self, optimum: Optimum, faster: SpeedUp | None) -> SecondsSpeedUp | tuple[str, ...]:
        if faster is None:
            return ()
        of_fit = [one for one in self.analysis.optima if one.fit == optimum.fit]
        return in_seconds(self.times, faster, optimum, [one for one in of_fit if one.scheme == DENSE])

    def optimum(self, scheme: str, budget: int, fit: str) -> Optimum | None:
        """The optimum, or None if the scheme has no run at ``budget``."""
        key = (scheme, budget, fit)
        return next(
            (one for one in self.analysis.optima if (one.scheme, one.budget, one.fit) == key), None
        )

    def law(self, scheme: str) -> str:
        """Describe the check of the learning rate's law, at the largest size of the middle budget."""
        rates = self.rates[scheme]
        found: dict[int, dict[float, float]] = defaultdict(dict)
        for record in self.cells:
            loss = _loss(record)
            at_middle = record.budget == rates.plan["middle_budget"]
            first_seed = record.seed == rates.plan["seed"]
            if record.scheme == scheme and at_middle and first_seed and loss is not None:
                found[record.width][record.learning_rate] = loss
        width = max(found, default=0)
        losses, expected = found[width], rates.at(width) if width else None
        if len(losses) < LEAST_RATES or width == rates.plan["middle_width"] or expected not in losses:
            return "not checked"
        best = min(losses, key=losses.__getitem__)
        lost = losses[expected] - losses[best]
        return f"width {width}: {expected:g} by the law" + (
            ", which is best" if best == expected else f", {best:g} is better by {lost:.4f} nats"
        )

    def forward_flops(self, optimum: Optimum) -> float | None:
        """Nominal forward FLOPs per token at ``optimum``, between those of its neighbours."""
        if optimum.size is None:
            return None
        pairs = sorted(
            {
                (record.metrics["active_parameters"], record.metrics["forward_flops_per_token"])
                for record in self.curve_records()
                if (record.scheme, record.budget) == (optimum.scheme, optimum.budget)
            }
        )
        sizes, flops = np.log(np.array(pairs, float)).T
        return float(np.exp(np.interp(np.log(optimum.size), sizes, flops)))

    def noise_floor(self, scheme: str) -> float | None:
        """Two standard deviations of the loss of one run between seeds, without the part that all runs
        of a seed share, in nats per token."""
        spread = self.analysis.noise.residual(scheme)
        return None if spread is None else 2 * spread.sd

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(record.key for record in self.curve_records())

    def on_curve(self, entry: Entry) -> dict[str, bool]:
        """Column of leaderboard.csv: True if ``entry`` is a point of a curve, False if it only tries a
        learning rate or has no finished run."""
        return {"on_curve": any(record.key in self._keys for record in entry.row.records)}


def _loss(record: Result) -> float | None:
    """The held-out loss; None unless the run is finished."""
    return record.metrics.get("heldout_loss") if record.status == "ok" else None


def _newest_plan(records: Sequence[Result]) -> dict[str, Any]:
    """The entry ``isoflop`` of the newest suite among ``records``."""
    newest = max(records, key=lambda one: (one.suite["finished"], one.key))
    return dict(newest.isoflop or {})


def sweep_of(
    records: Sequence[Result], board: Leaderboard, timings: TimingTable | None = None
) -> Sweep | None:
    """The isoFLOP sweep of ``records``; None if there is none. ``board``: their table, whose audits tell
    which schemes may be ranked. ``timings``: of the suite."""
    cells = tuple(record for record in records if record.isoflop)
    unranked = {}
    for row in (entry.row for entry in board.entries):
        if len(row.ok) == len(row.records) and row.why_unranked:
            unranked[row.first.scheme] = row.why_unranked
    return Sweep(cells, unranked, timings) if cells else None
