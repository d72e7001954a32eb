"""Compares rows of results folders: what differs in their settings and machines, and each metric with
its paired difference."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from modbench.analysis.difference import FEW_SEEDS, MARGIN, compare, row_noise
from modbench.analysis.noise import Noise
from modbench.analysis.pairs import pairs_frame
from modbench.errors import UserError, known_names, several
from modbench.records.metrics import METRICS
from modbench.records.named import Named
from modbench.records.result import Result
from modbench.report.table import Table
from modbench.report.times import Times, newest_session, time_marks, timed_frame

if TYPE_CHECKING:
    import pandas as pd

#: Settings that may change the digits of a run that is otherwise the same, by the name shown.
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
    "Not tested: the same runs on another type of processor (which rounds differently), one run each, "
    "and fewer than three seeds where the noise is not known well."
)
_DOUBTS = ("stable", "loaded", "throttled")
#: Costs that a speed-up is stated for.
_COSTS = ("train_flops_per_token", "forward_flops_per_token_realised")


#: The runs of one row on both sides that have a seed in common, by seed.
Paired = Mapping[int, tuple[Result, Result]]


def values_of(pairs: Paired, metric: str) -> tuple[dict[int, float], dict[int, float]] | None:
    """``metric`` on both sides by seed; None where a run lacks it."""
    sides: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for seed, pair in pairs.items():
        for side, result in zip(sides, pair, strict=True):
            if (value := result.metrics.get(metric)) is None:
                return None
            side[seed] = value
    return sides


def means(pairs: Paired, metric: str) -> tuple[float, float]:
    """The mean of ``metric`` on both sides."""
    first, second = values_of(pairs, metric) or ({}, {})
    return fmean(first.values()), fmean(second.values())


def metrics_of(pairs: Paired) -> list[str]:
    """The metrics that every run of ``pairs`` has."""
    return [name for name in METRICS if values_of(pairs, name) is not None]


def unequal(pairs: Paired) -> list[str]:
    """The metrics whose digits differ in a pair."""
    return [
        name
        for name in metrics_of(pairs)
        if any(first.metrics[name] != second.metrics[name] for first, second in pairs.values())
    ]


def same_machine(pairs: Paired) -> bool:
    """True if nothing that may change digits is recorded as different."""
    return not any({*_MACHINE} & {name for name, _ in _differences(*pair)} for pair in pairs.values())


@dataclass(frozen=True)
class Comparison:
    """Two sides, row by row. ``second`` is what is judged, ``first`` what it is compared with."""

    first: Named
    second: Named
    _known: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def is_of_rows(self) -> bool:
        return self.first.label is not None and self.second.label is not None

    @cached_property
    def matched(self) -> dict[str, Paired]:
        """The runs of each row that both sides have, by its label. Raises UserError: there are none, or
        a scheme of several sizes is compared with another one."""
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
        return {
            label
            + (f" at {budget:g} FLOPs" if len(budgets) > 1 else "")
            + (f", rate {rate:g}" if rates[label, budget] > 1 else ""): pairs
            for (label, budget, rate), pairs in sorted(groups.items())
        }

    @cached_property
    def lacking(self) -> tuple[list[str], list[str]]:
        """The rows that only the first side has finished, and those that only the second one has; with
        the status of those that failed on the other side."""
        paired = {of.label for pairs in self.matched.values() for pair in pairs.values() for of in pair}

        def only(side: Named, other: Named) -> list[str]:
            labels = sorted({result.label for result in side.results} - paired)
            status = {result.label: result.status for result in other.lost}
            return [f"{label} ({status[label]} there)" if label in status else label for label in labels]

        return only(self.first, self.second), only(self.second, self.first)

    @cached_property
    def _folders(self) -> tuple[Path, Path]:
        """The folder of each side, whatever the user called it."""
        return self.first.folder.resolve(), self.second.folder.resolve()

    @cached_property
    def _same_machine(self) -> dict[str, bool]:
        return {label: same_machine(pairs) for label, pairs in self.matched.items()}

    def noise(self, metric: str) -> Noise:
        """The noise of one run between seeds, of all rows of both folders at the budgets that are
        compared; empty for a metric that has none."""
        if METRICS[metric].kind != "quality":
            return row_noise({})
        budgets = {r.budget for pairs in self.matched.values() for pair in pairs.values() for r in pair}
        rows: dict[str, dict[int, float]] = defaultdict(dict)
        for side, folder in zip((self.first, self.second), self._folders, strict=True):
            for result in side.of_folder:
                if result.budget in budgets and (value := result.metrics.get(metric)) is not None:
                    rows[_row_name(folder, result)][result.seed] = value
        return row_noise(rows)

    def pairs_of(self, metric: str) -> dict[str, dict[str, Any]]:
        """The pairs of ``metric`` by row; rows that lack it are left out."""
        if metric not in self._known:
            from modbench.analysis.frames import plain_records

            pairs = plain_records(self.pairs(metric))
            self._known[metric] = {str(pair["scheme"]): pair for pair in pairs}
        return self._known[metric]

    def pairs(self, metric: str) -> "pd.DataFrame":
        """The frame of pairs: ``metric`` of the second side minus that of the first one, by row
        (``scheme``), over the seeds of both. All rows are a family. A row of one run on either side is
        not tested; nor are the same runs on another type of processor, on which the noise between seeds
        says nothing."""
        noise = self.noise(metric)
        margin = MARGIN if METRICS[metric].unit == "nats/token" else None
        found = []
        for label, pairs in self.matched.items():
            if (values := values_of(pairs, metric)) is None:
                continue
            first, second = pairs[min(pairs)]
            names = _row_name(self._folders[1], second), _row_name(self._folders[0], first)
            spreads = noise.of(names[0]), noise.of(names[1])
            is_same = self._same_machine[label]
            if not is_same and all(first.key == second.key for first, second in pairs.values()):
                spreads = None, None  # the difference is that of rounding
            pooled = noise.pooled if noise.is_pooled else None
            difference = compare(values[1], values[0], spreads, pooled, margin)
            if difference is not None:
                untold = FEW_SEEDS if len(pairs) == 1 else difference.untold
                of_row = {"scheme": label, "other": first.label, "metric": metric, "margin": margin}
                of_row |= {"budget": second.budget, "same_processor": is_same}
                family = "" if untold else metric
                found.append((of_row | {"family": family}, replace(difference, untold=untold)))
        return pairs_frame(found, "higher" if METRICS[metric].direction == "higher" else "lower")

    def table(self) -> Table:
        """A line per row if there are several, else a line per metric."""
        if len(self.matched) == 1 and self.is_of_rows:
            ((label, pairs),) = self.matched.items()
            metrics = metrics_of(pairs)
            lines = [_line(name, pairs, self.pairs_of(name)[label]) for name in metrics]
            heading = "metric"
        else:
            of_loss = self.pairs_of("heldout_loss")
            lines = [_line(label, self.matched[label], pair) for label, pair in of_loss.items()]
            heading = "row: validation loss (nats/token)"
        columns = ("seeds", "first", "second", "second - first", "verdict", "digits")
        return Table((heading, *columns), lines, left=(0, 5, 6))

    def sentences(self) -> list[str]:
        """A sentence on the digits, and one for each setting, machine or version that differs."""
        if self.is_of_rows:
            untested = [_UNTESTED] if self._is_untested() else []
            told = [_OF_ROWS] if len(self.matched) == 1 and not untested else self._adjusted()
            return [*self.speed_ups(), *told, *untested, *self.reasons()]
        lacking = [
            f"Only in {side.name}: {', '.join(labels)}."
            for side, labels in zip((self.first, self.second), self.lacking, strict=True)
            if labels
        ]
        return [*self._on_digits(), *lacking]

    def _on_digits(self) -> list[str]:
        differ = sum(bool(unequal(pairs)) for pairs in self.matched.values())
        rows = several(len(self.matched), "row")
        if not differ:
            also = [f"Equal although they differ in {reason}" for reason in self.reasons()]
            return [f"{rows}: the same digits in all metrics that both sides have.", *also]
        agree = len(self.matched) - differ
        summary = f"{rows}: the digits of {differ} differ, those of {agree} agree."
        reasons = self.reasons() or ["No setting, machine or version that is recorded explains it."]
        untested = [_UNTESTED] if self._is_untested() else []
        return [summary, *self._adjusted(), *untested, *reasons]

    def _adjusted(self) -> list[str]:
        """The sentence on the number of comparisons, if there are any."""
        tests = sum(pair["verdict"] is not None for pair in self.pairs_of("heldout_loss").values())
        return [f"Verdicts are adjusted for {several(tests, 'comparison')} (Holm)."] if tests else []

    def _is_untested(self) -> bool:
        """True if the loss of a row differs and can't be tested."""
        pairs = self.pairs_of("heldout_loss").values()
        return any(pair["value"] and pair["verdict"] is None for pair in pairs)

    def speed_ups(self) -> list[str]:
        """Sentences on how much faster the second row is, in FLOPs and in time. Times count where one
        session of `modbench time` measured both rows."""
        several_budgets = len(self.matched) > 1
        sentences = [
            f"speed-up in {METRICS[name].meaning}"
            + f", {label}" * several_budgets
            + f": {first / second:.3g}x"
            for label, pairs in self.matched.items()
            for name in _COSTS
            if values_of(pairs, name)
            for first, second in [means(pairs, name)]
            if second
        ]
        sides = [self._times(number) for number in (0, 1)]
        for name in METRICS:
            if not all(f"{name}_median" in side for side in sides):
                continue
            first, second = (side[f"{name}_median"] for side in sides)
            doubts = {time_marks(*(side.get(f"{name}_{mark}") for mark in _DOUBTS)) for side in sides}
            marks = ", ".join(sorted(doubts - {""}))
            sentences.append(
                f"speed-up in {METRICS[name].meaning}: {first / second:.3g}x"
                + f" ({marks})" * bool(marks)
            )
        return sentences

    def _times(self, number: int) -> Mapping[str, Any]:
        """The times of one row, the first or the second, in the newest session of its folder, by column
        of `timed_frame`; none if that of the other folder is another one."""
        from modbench.analysis.frames import tuples_of

        sides = self.first, self.second
        sessions = [
            newest_session(side.records.timings) if side.records.timings else [] for side in sides
        ]
        if len({timings[0].session if timings else None for timings in sessions}) > 1:
            return {}
        timings = sessions[number]
        key = sides[number].results[0].run.timed.key
        rows = tuples_of(timed_frame(Times(timings, {key: ""}))) if timings else []
        return {name: of for row in rows for name, of in row._asdict().items() if of is not None}

    def reasons(self) -> list[str]:
        """A sentence for each setting, part of the machine and version that differs in any pair."""
        reasons: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for pairs in self.matched.values():
            for first, second in pairs.values():
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
        pairs = self.pairs_of(metric)
        for label in self.matched.keys() - pairs.keys():
            raise UserError(f"row '{label}' has no {metric} on both sides")
        lost = [] if self.is_of_rows else [f"{label}: not finished" for label in self.lacking[0]]
        return lost + [label for label, pair in pairs.items() if _verdict(pair) == "worse"]


def _row_name(folder: Path, result: Result) -> str:
    """The row of ``result``, which is in ``folder``, among those of both folders."""
    return f"{folder} {result.label} {result.budget} {result.learning_rate}"


def _place(result: Result, one_row: bool, by_rate: bool) -> tuple[Any, ...]:
    rate = result.learning_rate if by_rate else None
    return "" if one_row else result.label, result.budget, result.seed, rate


def _line(name: str, pairs: Paired, pair: Mapping[str, Any]) -> tuple[object, ...]:
    shown = f"{pair['value']:+.6g}"
    if pair["low"] is not None and pair["value"]:
        shown += f" ({pair['low']:+.3g} to {pair['high']:+.3g})"
    numbers = [f"{value:.6g}" for value in means(pairs, pair["metric"])]
    digits = "differ" if pair["metric"] in unequal(pairs) else "equal"
    return (name, len(pairs), *numbers, shown, _verdict(pair), digits)


def _verdict(pair: Mapping[str, Any]) -> str:
    """That of the difference. An exact or timed metric has no noise, so its direction counts."""
    if pair["value"] == 0:
        return "equal"
    metric = METRICS[pair["metric"]]
    if metric.direction == "none":
        return "-"
    if pair["verdict"] is not None:
        return str(pair["verdict"])
    if metric.kind == "quality":
        return "not tested"
    return "better" if (pair["value"] < 0) == (metric.direction == "lower") else "worse"


def _differences(first: Result, second: Result) -> Iterator[tuple[str, tuple[str, str]]]:
    """The name and both values of all that differs in two runs but their labels."""
    settings = [dict(_leaves("", result.record.run)) for result in (first, second)]
    for name in dict.fromkeys((*settings[0], *settings[1])):
        yield from _pair(name, settings[0].get(name), settings[1].get(name))
    for name, key in _MACHINE.items():
        values = [result.record.environment.get(key) for result in (first, second)]
        if None not in values or key == "gpu":
            yield from _pair(name, *values)
    codes = [result.record.code for result in (first, second)]
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
