"""Compares rows of results folders: what differs in their settings and machines, and each metric with
its paired difference."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from modbench.analysis.comparison import Difference, mean_difference
from modbench.errors import UserError, known_names, several
from modbench.records.metrics import METRICS
from modbench.records.result import Result, results_of
from modbench.records.store import RECORDS, read_suite
from modbench.report.table import Table

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


@dataclass(frozen=True)
class Side:
    """Results of a suite's folder, or of one of its rows. ``name`` is what the user typed."""

    name: str
    results: Sequence[Result]
    label: str | None  #: of the row; None for the whole folder

    @classmethod
    def of(cls, name: str) -> "Side":
        """Read ``name``: the folder of a suite (``results/quick``), or that and a label
        (``results/quick/mod``). Raises UserError: there are no records, or none of that label."""
        parts = Path(name).parts
        for length in range(len(parts), 0, -1):
            folder = Path(*parts[:length])
            if (folder / RECORDS).is_dir():
                break
        else:
            raise UserError(
                f"{name} is no folder of results; name one such as my-results/quick, or a row of it "
                "such as my-results/quick/mod"
            )
        results = [result for result in results_of(read_suite(folder)) if result.status == "ok"]
        label = "/".join(parts[length:]) or None
        if label is not None:
            of_label = [result for result in results if label in (result.label, result.scheme)]
            if not of_label:
                known = sorted({result.label for result in results})
                raise UserError(f"{folder} has no finished row '{label}'; {known_names(label, known)}")
            results = of_label
        if not results:
            raise UserError(f"{folder} has no finished run to compare; see `modbench report`")
        return cls(name, results, label)


@dataclass(frozen=True)
class Pairing:
    """The runs of one row on both sides that have a seed in common, by seed."""

    label: str
    pairs: Mapping[int, tuple[Result, Result]]

    def difference(self, metric: str) -> tuple[float, Difference | None] | None:
        """Mean over seeds of the second side minus the first one, and its interval if there are two
        seeds or more; None where a run lacks ``metric``."""
        values = [_values(pair, metric) for pair in self.pairs.values()]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        differences = [second - first for first, second in known]
        return fmean(differences), mean_difference(differences) if len(differences) > 1 else None

    def means(self, metric: str) -> tuple[float, float]:
        """The mean of ``metric`` on both sides."""
        first, second = zip(*(_values(pair, metric) or () for pair in self.pairs.values()), strict=True)
        return fmean(first), fmean(second)

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that every run of the pairing has."""
        return [name for name in METRICS if self.difference(name) is not None]

    @cached_property
    def unequal(self) -> list[str]:
        """The metrics whose digits differ in a pair."""
        pairs = self.pairs.values()
        return [name for name in self.metrics if any(len({*_known(pair, name)}) > 1 for pair in pairs)]


@dataclass(frozen=True)
class Comparison:
    """Two sides, row by row. ``second`` is what is judged, ``first`` what it is compared with."""

    first: Side
    second: Side

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
        groups: dict[tuple[str, int], dict[int, tuple[Result, Result]]] = defaultdict(dict)
        others = {_place(result, one_row): result for result in self.first.results}
        budgets = {result.budget for result in (*self.first.results, *self.second.results)}
        for result in self.second.results:
            if (other := others.get(_place(result, one_row))) is not None:
                groups[result.label, result.budget][result.seed] = (other, result)
        if not groups:
            raise UserError(
                f"{self.first.name} and {self.second.name} have no run in common: none has the same "
                + ("budget and seed" if one_row else "label, budget and seed")
            )
        return [
            Pairing(label if len(budgets) == 1 else f"{label} at {budget:g} FLOPs", pairs)
            for (label, budget), pairs in sorted(groups.items())
        ]

    def table(self) -> Table:
        """A line per row if there are several, else a line per metric."""
        if len(self.pairings) == 1 and self.is_of_rows:
            lines = [_line(self.pairings[0], name) for name in self.pairings[0].metrics]
            headings: tuple[str, ...] = ("metric",)
        else:
            pairings = [pairing for pairing in self.pairings if "heldout_loss" in pairing.metrics]
            lines = [(pairing.label, *_line(pairing, "heldout_loss")[1:]) for pairing in pairings]
            headings = ("row: held-out loss (nats/token)",)
        columns = ("seeds", "first", "second", "second - first", "verdict", "digits")
        return Table((*headings, *columns), lines, left=(0, 5, 6))

    def sentences(self) -> list[str]:
        """A sentence on the digits, and one for each setting, machine or version that differs."""
        if self.is_of_rows:
            return self.reasons()
        unequal = [pairing for pairing in self.pairings if pairing.unequal]
        rows = several(len(self.pairings), "row")
        if not unequal:
            return [f"{rows}: the same digits in all metrics that both sides have.", *self.reasons()]
        agree = len(self.pairings) - len(unequal)
        found = f"{rows}: the digits of {len(unequal)} differ, those of {agree} agree."
        reasons = self.reasons()
        return [found, *(reasons or ["No setting, machine or version that is recorded explains it."])]

    def reasons(self) -> list[str]:
        """A sentence for each setting, part of the machine and version that differs in any pair."""
        found: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for pairing in self.pairings:
            for first, second in pairing.pairs.values():
                for name, values in _differences(first, second):
                    found[name].add(values)
        return [
            f"{name}: " + "; ".join(f"{first} | {second}" for first, second in sorted(values))
            for name, values in found.items()
        ]

    def worse(self, metric: str) -> list[str]:
        """The rows whose ``metric`` is worse on the second side: by the verdict, or, with one seed in
        common, by any difference. Raises UserError: no such metric, it has no better side, or a row
        lacks it."""
        if metric not in METRICS or METRICS[metric].direction == "none":
            known = [name for name, of in METRICS.items() if of.direction != "none"]
            raise UserError(f"metric '{metric}' can't be worse; {known_names(metric, known)}")
        sign = 1 if METRICS[metric].direction == "lower" else -1
        labels = []
        for pairing in self.pairings:
            found = pairing.difference(metric)
            if found is None:
                raise UserError(f"row '{pairing.label}' has no {metric} on both sides")
            mean, tested = found
            low, high = tested.interval if tested else (mean, mean)
            if min(sign * low, sign * high) > 0:
                labels.append(pairing.label)
        return labels


def _place(result: Result, one_row: bool) -> tuple[Any, ...]:
    return ("" if one_row else result.label, result.budget, result.seed, result.learning_rate)


def _values(pair: tuple[Result, Result], metric: str) -> tuple[float, float] | None:
    values = _known(pair, metric)
    return (values[0], values[1]) if len(values) == 2 else None


def _known(pair: tuple[Result, Result], metric: str) -> list[float]:
    values = [result.metrics.get(metric) for result in pair]
    return [value for value in values if value is not None]


def _line(pairing: Pairing, metric: str) -> tuple[object, ...]:
    mean, tested = pairing.difference(metric) or (0.0, None)
    shown = f"{mean:+.6g}"
    if tested is not None:
        shown += f" ({tested.interval[0]:+.3g} to {tested.interval[1]:+.3g})"
    numbers = [f"{value:.6g}" for value in pairing.means(metric)]
    digits = "differ" if metric in pairing.unequal else "equal"
    return (metric, len(pairing.pairs), *numbers, shown, _verdict(metric, mean, tested), digits)


def _verdict(metric: str, mean: float, tested: Difference | None) -> str:
    if mean == 0 and (tested is None or tested.interval == (0.0, 0.0)):
        return "equal"
    if tested is None:
        return "one seed: no interval"
    low, high = tested.interval
    if low <= 0 <= high:
        return "undecided"
    direction = METRICS[metric].direction
    if direction == "none":
        return "differs"
    return "better" if (high < 0) == (direction == "lower") else "worse"


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
