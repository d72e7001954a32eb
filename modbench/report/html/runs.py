"""Runs behind the numbers of a page: names, records, and the commands that make and check them."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from modbench.records.result import Result
from modbench.records.run_name import RunName, shortest
from modbench.records.store import RECORDS
from modbench.report.html.source import SuiteReport
from modbench.report.isoflop.page import runs_at
from modbench.report.leaderboard.row import MACHINE
from modbench.report.sections import made_by
from modbench.report.timing.values import machine_in_words
from modbench.shipped import shipped_suites

#: Fields of a line, which is canonical JSON, so that their text is known.
_FINISHED, _KEY = re.compile(rb'"finished":"([^"]*)"'), re.compile(rb'"key":"([0-9a-f]{16})"')
#: Metrics that the list of runs shows, with their headings.
_SHOWN = {
    "heldout_loss": "held-out loss (nats/token)",
    "train_tokens": "training tokens",
    "train_flops": "training FLOPs",
}


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A run at a budget. ``files``: what they hold of it, and their paths;
    ``machine`` and ``code``: numbers of those of the page, from 1."""

    name: str
    seed: int
    status: str
    error: str
    metrics: tuple[float | None, ...]
    machine: int
    code: int
    finished: str
    files: tuple[tuple[str, str], ...]
    train: str  #: command that trains it again; empty if no record names the suite
    verify: str


@dataclass(frozen=True)
class Runs:
    """The runs of a suite, those of a row next to each other."""

    report: SuiteReport

    @cached_property
    def ordered(self) -> list[Result]:
        """All runs: row by row; of isoFLOP suites by budget, scheme and size."""
        results = self.report.results
        if self.report.sweep is None:
            return results
        return sorted(results, key=_of_curves)

    @cached_property
    def places(self) -> Mapping[str, tuple[int, int]]:
        """Numbers of the first and the last run of each name that tables state in `Table.runs`."""
        places: dict[str, tuple[int, int]] = {}
        number = {id(result): place for place, result in enumerate(self.ordered)}
        for entry in self.report.board.entries if self.report.board else ():
            for result in entry.row.records:
                names = [entry.row.label, result.label]
                if self.report.sweep:
                    names.append(runs_at(result.scheme, result.budget))
                for name in dict.fromkeys(names):
                    place = number[id(result)]
                    first, last = places.get(name, (place, place))
                    places[name] = min(first, place), max(last, place)
        return places

    @cached_property
    def machines(self) -> list[str]:
        return sorted({machine_in_words(result.environment, MACHINE) for result in self.ordered})

    @cached_property
    def codes(self) -> list[str]:
        return sorted({made_by(result.code) for result in self.ordered})

    @cached_property
    def metrics(self) -> dict[str, str]:
        """Headings of the metrics that are shown: those that rank or that any run has."""
        held = {name for result in self.ordered for name in result.metrics}
        by = self.report.board.rank_by if self.report.board else ""
        names = {by: by} | _SHOWN if by not in _SHOWN else _SHOWN
        return {name: heading for name, heading in names.items() if name in held}

    @cached_property
    def entries(self) -> list[RunEntry]:
        full = [
            RunName(row=r.label, budget=r.budget, seed=r.seed, learning_rate=r.learning_rate)
            for r in self.ordered
        ]
        names = shortest(full, [result.key for result in self.ordered])
        return [self._entry(*pair) for pair in zip(self.ordered, names, strict=True)]

    def _entry(self, result: Result, name: str) -> RunEntry:
        suite = self.report.folder
        typed = RunName.parsed(name)
        # A run named by its key has no row that could be chosen.
        row = typed.row if typed.row == result.label else ""
        with_seed = str(replace(typed, seed=result.seed)) if row else name
        only = f"{_typed(str(replace(typed, seed=None)))} --seeds {result.seed}"
        if self.report.sweep:  # other seeds would try learning rates of their own
            only = _typed(with_seed)
        file = suite if suite in shipped_suites() else f"{suite}.toml"
        plugin = " --plugin FILE.py" * bool(result.run.router.plugin_sha256)
        train = f"modbench run {file} --only {only}{plugin}" if row else ""
        verify = f"modbench verify {_typed(f'{suite}/{with_seed}')} --results FOLDER{plugin}"
        return RunEntry(
            name=with_seed,
            seed=result.seed,
            status=result.status,
            error=result.error or "",
            metrics=tuple(result.metrics.get(metric) for metric in self.metrics),
            machine=1 + self.machines.index(machine_in_words(result.environment, MACHINE)),
            code=1 + self.codes.index(made_by(result.code)),
            finished=result.record.finished[:10],
            files=self._files(result),
            train=train if self.report.is_named else "",
            verify=verify,
        )

    def _files(self, result: Result) -> tuple[tuple[str, str], ...]:
        """Parts of ``result`` with the file of their records."""
        held = [("training", (result.record.key, result.record.finished))]
        for record in result.measurements:
            name = record.measurement["settings"].get("task") or record.measurement["measures"]
            held.append((name.replace("heldout", "loss"), (record.key, record.finished)))
        known = self.report.files
        parts: dict[str, list[str]] = {}
        for name, key in held:
            if key in known:
                parts.setdefault(known[key], []).append(name)
        return tuple((", ".join(names), file) for file, names in parts.items())


def _of_curves(result: Result) -> tuple[int, str, int, int, float, int]:
    depth, width = result.depth or 0, result.width
    return result.budget, result.scheme, depth, width, result.learning_rate, result.seed


def _typed(word: str) -> str:
    """``word`` as one types it in a shell."""
    # A shell takes a hash for a comment at the start of a word only, which a label never has.
    return word if shlex.quote(word.replace("#", "")) == word.replace("#", "") else shlex.quote(word)


def files_of(folder: Path) -> dict[tuple[str, ...], str]:
    """The file of each record under ``folder`` (``results/<suite>``) by the record's key and end,
    relative to ``folder``."""
    files: dict[tuple[str, ...], str] = {}
    for path in sorted((folder / RECORDS).glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            key, finished = _KEY.search(line), _FINISHED.search(line)
            if key and finished:
                files[key[1].decode(), finished[1].decode()] = f"{RECORDS}/{path.name}"
    return files
