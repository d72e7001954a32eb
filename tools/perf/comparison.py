"""Two revisions' benchmarks side by side: which became slower or faster beyond noise, which are missing,
which are new, which run here alone."""

import json
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: A smaller change than this is none: where a tree's files lie moves times as much.
FLOOR = 0.02

#: Of one process: each benchmark's median seconds, or bytes, by name.
Medians = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One benchmark in both revisions: a median of each process, pair by pair."""

    before: Sequence[float]
    after: Sequence[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.after) / statistics.median(self.before)

    @property
    def interval(self) -> tuple[float, float]:
        """The smallest and largest ratio of a pair. Of n pairs, they hold the true median between them
        with probability 1 - 2^(1 - n), which is 94 % of five."""
        ratios = [after / before for before, after in zip(self.before, self.after, strict=True)]
        return min(ratios), max(ratios)

    @property
    def verdict(self) -> str:
        """``slower`` or ``faster`` if each process of one revision is beyond all of the other's, and
        their medians differ by more than `FLOOR`; else ``same``. Of equal revisions that comes about
        with probability 2 n!^2 / (2n)! for n pairs, once in 126 of five."""
        if min(self.after) > max(self.before) and self.ratio > 1 + FLOOR:
            return "slower"
        if max(self.after) < min(self.before) and self.ratio < 1 / (1 + FLOOR):
            return "faster"
        return "same"

    def __add__(self, other: "Change") -> "Change":
        """Of the processes of both."""
        return Change(
            before=[*self.before, *other.before],
            after=[*self.after, *other.after],
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``missing``: not there any more, or failing here. ``new``: running here, and unknown to the other
    revision. ``here_alone``: the other revision has one of that name, and this tree's runs here and not
    there, where it may ask for what isn't there yet. ``not_run``: there, and running on neither side.
    ``again``: of what looked changed, a second set of processes, which must say the same."""

    changes: Mapping[str, Change]
    missing: Sequence[str]
    new: Sequence[str]
    here_alone: Sequence[str] = ()
    not_run: Sequence[str] = ()
    again: Mapping[str, Change] = field(default_factory=dict)

    def verdict(self, name: str) -> str:
        first = self.changes[name].verdict
        if name in self.again and self.again[name].verdict != first:
            return "same"
        return first

    @property
    def changed(self) -> list[str]:
        return [name for name in self.changes if self.verdict(name) != "same"]

    @property
    def failed(self) -> bool:
        return bool(self.missing) or any(self.verdict(name) == "slower" for name in self.changes)

    def lines(self) -> Iterator[str]:
        """One to a benchmark, and how many there are of each verdict."""
        width = max(map(len, self.changes), default=0)
        for name, change in self.changes.items():
            whole = change + self.again[name] if name in self.again else change
            low, high = whole.interval
            yield (
                f"{name:<{width}}  {_value(whole.before)} -> {_value(whole.after)}"
                f"  {whole.ratio:6.3f} x [{low:.3f} to {high:.3f}]  {self.verdict(name)}"
            )
        others = {
            "missing": self.missing,
            "new": self.new,
            "run here alone": self.here_alone,
            "not run": self.not_run,
        }
        for kind, names in others.items():
            for name in names:
                yield f"{name}  {kind}"
        verdicts = [self.verdict(name) for name in self.changes]
        counts = {kind: verdicts.count(kind) for kind in ("slower", "faster", "same")}
        counts |= {kind: len(names) for kind, names in others.items()}
        yield ", ".join(f"{count} {kind}" for kind, count in counts.items())


def compare(
    before: Sequence[Medians],
    after: Sequence[Medians],
    there: Collection[str] = (),
    here: Collection[str] = (),
) -> Comparison:
    """The processes of two revisions, pair by pair. A benchmark that fails in one of a revision's
    processes doesn't run there. ``there``: all benchmarks that the earlier revision has; ``here``: all
    that the later one has."""
    ran_before, ran_after = (set.intersection(*map(set, side)) for side in (before, after))
    here_alone = ran_after - ran_before
    return Comparison(
        changes={
            name: Change(before=[one[name] for one in before], after=[one[name] for one in after])
            for name in sorted(ran_before & ran_after)
        },
        missing=sorted((ran_before | (set(there) - set(here))) - ran_after),
        new=sorted(here_alone - set(there)),
        here_alone=sorted(here_alone & set(there)),
        not_run=sorted(set(here) - ran_before - ran_after),
    )


def medians_of(file: Path) -> dict[str, float]:
    """Out of what pytest-benchmark wrote; nothing where it had nothing to write."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())["benchmarks"]
    return {
        one["fullname"]: float(one["extra_info"].get("bytes", one["stats"]["median"])) for one in found
    }


def _value(medians: Sequence[float]) -> str:
    median = statistics.median(medians)
    if median > 1e5:  # bytes, for nothing takes as many seconds
        return f"{median / 1e6:8.1f} MB"
    return f"{median * 1e3:8.3f} ms" if median < 1 else f"{median:8.3f} s "
