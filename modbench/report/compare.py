"""Compares rows of results folders: what differs in their settings and machines, and each metric with
its paired difference."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from modbench.analysis.difference import FEW_SEEDS, MARGIN, Difference, compare, judge, row_noise
from modbench.analysis.noise import Noise
from modbench.errors import UserError, known_names, several
from modbench.records.metrics import METRICS
from modbench.records.named import Named
from modbench.records.result import Result
from modbench.report.leaderboard.row import Value, timed_values
from modbench.report.table import Table
from modbench.report.timing.table import TimingTable
from modbench.report.timing.values import ROUNDING, newest_session

#: What may change the digits of a run that is otherwise the same, by the name shown.
_MACHINE = {
    "processor": "cpu",
    "instructions": "instructions",
    "GPU": "gpu",
    "precision": "dtype",
    "threads": "threads",
    "PyTorch": "torch",
    "kernels": "kernels",
}

_OF_ROWS = (
    "Each verdict is of one comparison; that of a report's page is adjusted for all comparisons there."
)
_UNTESTED = (
    "Not tested: the same runs on another type of processor (which changes a loss by rounding only: "
    f"{ROUNDING} nats per token, rms of runs that were repeated), one run each, and fewer than three "
    "seeds where the noise is not known well."
)
#: Costs that a speed-up is stated for.
_COSTS = ("train_flops_per_token", "forward_flops_per_token_realised")


@dataclass(frozen=True)
class Pairing:
    """The runs of one row on both sides that have a seed in common, by seed."""

    label: str
    pairs: Mapping[int, tuple[Result, Result]]

    def values(self, metric: str) -> tuple[dict[int, float], dict[int, float]] | None:
        """``metric`` on both sides by seed; None where a run lacks it."""
        values = {seed: _values(pair, metric) for seed, pair in self.pairs.items()}
        known = {seed: value for seed, value in values.items() if value is not None}
        if len(known) < len(values):
            return None
        return {s: value[0] for s, value in known.items()}, {s: value[1] for s, value in known.items()}

    def means(self, metric: str) -> tuple[float, float]:
        """The mean of ``metric`` on both sides."""
        first, second = self.values(metric) or ({}, {})
        return fmean(first.values()), fmean(second.values())

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that every run of the pairing has."""
        return [name for name in METRICS if self.values(name) is not None]

    @property
    def same_machine(self) -> bool:
        """True if nothing that may change digits is recorded as different."""
        return not any(
            {*_MACHINE} & {name for name, _ in _differences(*pair)} for pair in self.pairs.values()
        )

    @property
    def is_rounding(self) -> bool:
        """True if both sides are the same runs, trained on another type of processor."""
        same = all(first.key == second.key for first, second in self.pairs.values())
        return same and not self.same_machine

    @cached_property
    def unequal(self) -> list[str]:
        """The metrics whose digits differ in a pair."""
        pairs = self.pairs.values()
        return [name for name in self.metrics if any(len({*_known(pair, name)}) > 1 for pair in pairs)]


@dataclass(frozen=True)
class Comparison:
    """Two sides, row by row. ``second`` is what is judged, ``first`` what it is compared with."""

    first: Named
    second: Named

    @property
    def is_of_rows(self) -> bool:
        return self.first.label is not None and self.second.label is not None

    @cached_property
    def pairings(self) -> list[Pairing]:
        """The rows that both sides have. Raises UserError: there are none, or a scheme of several sizes
        is compared with another one."""
        one_row = self.is_of_rows
        for side in (self.first, self.second) if one_row else ():
            if len(labels := sorted({result.label for result in side.results})) > 1:
                raise UserError(f"{side.name} has several sizes; name one: {', '.join(labels)}")
        sides = [*self.first.results, *self.second.results]
        # Rows of other labels may have a learning rate of their own each.
        by_rate = not one_row or any(
            len({r.learning_rate for r in side.results}) > 1 for side in (self.first, self.second)
        )
        groups: dict[tuple[str, int, float], dict[int, tuple[Result, Result]]] = defaultdict(dict)
        others = {_place(result, one_row, by_rate): result for result in self.first.results}
        budgets = {result.budget for result in sides}
        for result in self.second.results:
            if (other := others.get(_place(result, one_row, by_rate))) is not None:
                rate = result.learning_rate if by_rate else 0.0
                groups[result.label, result.budget, rate][result.seed] = (other, result)
        if not groups:
            raise UserError(
                f"{self.first.name} and {self.second.name} have no run in common: none has the same "
                + ("budget and seed" if one_row else "label, budget and seed")
            )
        rates = Counter((label, budget) for label, budget, _ in groups)
        return [
            Pairing(
                label
                + (f" at {budget:g} FLOPs" if len(budgets) > 1 else "")
                + (f", rate {rate:g}" if rates[label, budget] > 1 else ""),
                pairs,
            )
            for (label, budget, rate), pairs in sorted(groups.items())
        ]

    @cached_property
    def lacking(self) -> tuple[list[str], list[str]]:
        """The rows that only the first side has finished, and those that only the second one has; with
        the status of those that failed on the other side."""
        paired = {r.label for pairing in self.pairings for pair in pairing.pairs.values() for r in pair}

        def only(side: Named, other: Named) -> list[str]:
            labels = sorted({result.label for result in side.results} - paired)
            status = {result.label: result.status for result in other.lost}
            return [f"{label} ({status[label]} there)" if label in status else label for label in labels]

        return only(self.first, self.second), only(self.second, self.first)

    def noise(self, metric: str) -> Noise:
        """The noise of one run between seeds, of all rows of both folders at the budgets that are
        compared; empty for a metric that has none."""
        if METRICS[metric].kind != "quality":
            return row_noise({})
        budgets = {
            r.budget for pairing in self.pairings for pair in pairing.pairs.values() for r in pair
        }
        rows: dict[str, dict[int, float]] = defaultdict(dict)
        for side in (self.first, self.second):
            for result in side.of_folder:
                if result.budget in budgets and (value := result.metrics.get(metric)) is not None:
                    rows[_row_name(side, result)][result.seed] = value
        return row_noise(rows)

    def differences(self, metric: str) -> dict[str, Difference]:
        """The second side minus the first one, by label, over the seeds of both; the verdict is adjusted
        for the number of rows (Holm). Rows that lack ``metric`` are left out. A row of one run on either
        side is not tested; nor are the same runs on another type of processor, on which the noise
        between seeds says nothing."""
        noise = self.noise(metric)
        margin = MARGIN if METRICS[metric].unit == "nats/token" else None
        minus = {}
        for pairing in self.pairings:
            if values := pairing.values(metric):
                first, second = pairing.pairs[min(pairing.pairs)]
                names = _row_name(self.second, second), _row_name(self.first, first)
                spreads = noise.of(names[0]), noise.of(names[1])
                if pairing.is_rounding:
                    spreads = None, None
                pooled = noise.pooled if noise.is_pooled else None
                if difference := compare(values[1], values[0], spreads, pooled, margin):
                    untold = FEW_SEEDS if len(pairing.pairs) == 1 else difference.untold
                    minus[pairing.label] = replace(difference, untold=untold)
        direction = METRICS[metric].direction
        tested = [label for label, difference in minus.items() if not difference.untold]
        better: Literal["higher", "lower"] = "higher" if direction == "higher" else "lower"
        judged = judge([minus[label] for label in tested], better)
        return minus | dict(zip(tested, judged, strict=True))

    def table(self) -> Table:
        """A line per row if there are several, else a line per metric."""
        if len(self.pairings) == 1 and self.is_of_rows:
            (pairing,) = self.pairings
            lines = [
                _line(name, pairing, name, self.differences(name)[pairing.label])
                for name in pairing.metrics
            ]
            heading = "metric"
        else:
            differences = self.differences("heldout_loss")
            lines = [
                _line(pairing.label, pairing, "heldout_loss", differences[pairing.label])
                for pairing in self.pairings
                if pairing.label in differences
            ]
            heading = "row: held-out loss (nats/token)"
        columns = ("seeds", "first", "second", "second - first", "verdict", "digits")
        return Table((heading, *columns), lines, left=(0, 5, 6))

    def sentences(self) -> list[str]:
        """A sentence on the digits, and one for each setting, machine or version that differs."""
        if self.is_of_rows:
            untested = [_UNTESTED] if self._is_untested() else []
            told = [_OF_ROWS] if len(self.pairings) == 1 and not untested else self._adjusted()
            return [*self.speed_ups(), *told, *untested, *self.reasons()]
        lacking = [
            f"Only in {side.name}: {', '.join(labels)}."
            for side, labels in zip((self.first, self.second), self.lacking, strict=True)
            if labels
        ]
        return [*self._on_digits(), *lacking]

    def _on_digits(self) -> list[str]:
        unequal = [pairing for pairing in self.pairings if pairing.unequal]
        rows = several(len(self.pairings), "row")
        if not unequal:
            also = [f"Equal although they differ in {reason}" for reason in self.reasons()]
            return [f"{rows}: the same digits in all metrics that both sides have.", *also]
        agree = len(self.pairings) - len(unequal)
        summary = f"{rows}: the digits of {len(unequal)} differ, those of {agree} agree."
        reasons = self.reasons() or ["No setting, machine or version that is recorded explains it."]
        untested = [_UNTESTED] if self._is_untested() else []
        return [summary, *self._adjusted(), *untested, *reasons]

    def _adjusted(self) -> list[str]:
        """The sentence on the number of comparisons, if there are any."""
        tests = sum(of.verdict is not None for of in self.differences("heldout_loss").values())
        return [f"Verdicts are adjusted for {several(tests, 'comparison')} (Holm)."] if tests else []

    def _is_untested(self) -> bool:
        """True if the loss of a row differs and can't be tested."""
        differences = self.differences("heldout_loss").values()
        return any(of.value and of.verdict is None for of in differences)

    def speed_ups(self) -> list[str]:
        """Sentences on how much faster the second row is, in FLOPs and in time. Times count where one
        session of `modbench time` measured both rows."""
        several_budgets = len(self.pairings) > 1
        sentences = [
            f"speed-up in {METRICS[name].meaning}"
            + f", {pairing.label}" * several_budgets
            + f": {first / second:.3g}x"
            for pairing in self.pairings
            for name in _COSTS
            if name in pairing.metrics
            for first, second in [pairing.means(name)]
            if second
        ]
        first, second = (self._times(number) for number in (0, 1))
        for name in first.keys() & second.keys():
            marks = ", ".join(sorted({of.marks for of in (first[name], second[name])} - {""}))
            sentences.append(
                f"speed-up in {METRICS[name].meaning}: {first[name].center / second[name].center:.3g}x"
                + f" ({marks})" * bool(marks)
            )
        return sentences

    def _times(self, number: int) -> Mapping[str, Value]:
        """The times of one row, the first or the second, in the newest session of its folder; none if
        that of the other folder is another one."""
        sides = self.first, self.second
        sessions = [
            newest_session(side.records.timings) if side.records.timings else [] for side in sides
        ]
        if len({timings[0].session if timings else None for timings in sessions}) > 1:
            return {}
        timings = sessions[number]
        table = TimingTable(timings, {}, "") if timings else None
        return timed_values(table)(sides[number].results[0])

    def reasons(self) -> list[str]:
        """A sentence for each setting, part of the machine and version that differs in any pair."""
        reasons: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for pairing in self.pairings:
            for first, second in pairing.pairs.values():
                for name, values in _differences(first, second):
                    reasons[name].add(values)
        return [
            f"{name}: " + "; ".join(f"{first} | {second}" for first, second in sorted(values))
            for name, values in reasons.items()
        ]

    def worse(self, metric: str) -> list[str]:
        """The rows whose ``metric`` is worse on the second side: by the verdict; of an exact or timed
        metric by any difference; and rows that only the first side has finished. Raises UserError: no
        such metric, it has no better side, or a row lacks it."""
        if metric not in METRICS or METRICS[metric].direction == "none":
            known = [name for name, of in METRICS.items() if of.direction != "none"]
            raise UserError(f"metric '{metric}' can't be worse; {known_names(metric, known)}")
        differences = self.differences(metric)
        for pairing in self.pairings:
            if pairing.label not in differences:
                raise UserError(f"row '{pairing.label}' has no {metric} on both sides")
        lost = [] if self.is_of_rows else [f"{label}: not finished" for label in self.lacking[0]]
        return lost + [
            label for label, difference in differences.items() if _verdict(metric, difference) == "worse"
        ]


def machine_differences(first: Sequence[Result], second: Sequence[Result]) -> list[str]:
    """A sentence for each part of the machines, precision and versions of ``first`` that differs from
    those of ``second``."""
    sentences = []
    for name, key in _MACHINE.items():
        sides = [
            sorted({_shown(result.environment.get(key)) for result in results})
            for results in (first, second)
        ]
        # Older records lack some parts, which then are not known to differ.
        known = key == "gpu" or not any("-" in side for side in sides)
        if known and sides[0] != sides[1]:
            sentences.append(f"{name}: {' | '.join('; '.join(side) for side in sides)}")
    return sentences


def _row_name(side: Named, result: Result) -> str:
    """The row of ``result`` among those of both folders."""
    return f"{side.folder.resolve()} {result.label} {result.budget} {result.learning_rate}"


def _place(result: Result, one_row: bool, by_rate: bool) -> tuple[Any, ...]:
    rate = result.learning_rate if by_rate else None
    return "" if one_row else result.label, result.budget, result.seed, rate


def _values(pair: tuple[Result, Result], metric: str) -> tuple[float, float] | None:
    values = _known(pair, metric)
    return (values[0], values[1]) if len(values) == 2 else None


def _known(pair: tuple[Result, Result], metric: str) -> list[float]:
    values = [result.metrics.get(metric) for result in pair]
    return [value for value in values if value is not None]


def _line(name: str, pairing: Pairing, metric: str, difference: Difference) -> tuple[object, ...]:
    shown = f"{difference.value:+.6g}"
    if difference.interval is not None and difference.value:
        shown += f" ({difference.interval[0]:+.3g} to {difference.interval[1]:+.3g})"
    numbers = [f"{value:.6g}" for value in pairing.means(metric)]
    digits = "differ" if metric in pairing.unequal else "equal"
    return (name, len(pairing.pairs), *numbers, shown, _verdict(metric, difference), digits)


def _verdict(metric: str, difference: Difference) -> str:
    """That of the difference. An exact or timed metric has no noise, so its direction counts."""
    if difference.value == 0:
        return "equal"
    direction = METRICS[metric].direction
    if direction == "none":
        return "-"
    if difference.verdict is not None:
        return difference.verdict
    if METRICS[metric].kind == "quality":
        return "not tested"
    return "better" if (difference.value < 0) == (direction == "lower") else "worse"


def _differences(first: Result, second: Result) -> Iterator[tuple[str, tuple[str, str]]]:
    """The name and both values of all that differs in two runs but their labels."""
    settings = [dict(_leaves("", result.record.run)) for result in (first, second)]
    for name in dict.fromkeys((*settings[0], *settings[1])):
        yield from _pair(name, settings[0].get(name), settings[1].get(name))
    for name, key in _MACHINE.items():
        values = [result.environment.get(key) for result in (first, second)]
        if None not in values or key == "gpu":
            yield from _pair(name, *values)
    codes = [result.code for result in (first, second)]
    yield from _pair("modbench", *(f"{code['version']} {(code['commit'] or '')[:8]}" for code in codes))


def _pair(name: str, first: Any, second: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    if first != second:
        yield name, (_shown(first), _shown(second))


def _shown(value: Any) -> str:
    return "-" if value is None else str(value).strip()


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries, named ``part.key``."""
    if isinstance(value, Mapping):
        for key, of in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, of)
    else:
        yield prefix, value
