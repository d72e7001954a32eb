"""Joins the records of several machines. Loads no torch."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from modbench.errors import UserError, several
from modbench.records.line import sha256
from modbench.records.record import (
    AnyRecord,
    MeasurementRecord,
    RunRecord,
    SuiteRecord,
    TimingRecord,
    rank_of,
)
from modbench.records.store import RECORDS, read_files, record_files, recorded_suites, write_files

_Rerun = TypeVar("_Rerun", RunRecord, MeasurementRecord)


@dataclass(frozen=True)
class Merged:
    """The records of one suite after a merge."""

    suite: str
    added: int  #: records that were not there before
    conflicts: Sequence[str]  #: a sentence each


def merge(folders: Sequence[Path], into: Path) -> list[Merged]:
    """Add the records of ``folders``, results folders or folders of suites, to those in the results
    folder ``into``. A record that is there already is not added again. Weights stay where they are.
    Nothing is written before all folders were read. Raises UserError: a folder has no records, a line
    is damaged, or ``into`` can't be written to."""
    lines: dict[str, dict[str, AnyRecord]] = defaultdict(dict)
    for folder in folders:
        for suite in _suites(folder):
            records = _by_line(suite)
            # A folder may have been renamed on its way.
            named = {record.suite.name for record in records.values() if isinstance(record, SuiteRecord)}
            lines[named.pop() if len(named) == 1 else suite.resolve().name] |= records
    present = {name: _by_line(into / name) for name in lines}
    merged = []
    for name, read in sorted(lines.items()):
        new = sorted(read.keys() - present[name].keys())
        if new:
            content = "".join(f"{line}\n" for line in new)
            file = f"{sha256(content)[:16]}.jsonl"
            write_files(into / name / RECORDS, {file: content.encode()})
        conflicts = list(_conflicts((read | present[name]).values()))
        merged.append(Merged(name, len(new), conflicts))
    return merged


def _by_line(suite: Path) -> dict[str, AnyRecord]:
    return {record.line(): record for record in read_files(record_files(suite), [])}


def _suites(folder: Path) -> list[Path]:
    """The folders of suites that ``folder`` stands for."""
    if (folder / RECORDS).is_dir():
        return [folder]
    if names := recorded_suites(folder):
        return [folder / name for name in names]
    raise UserError(f"{folder} holds no records; name a results folder, or a suite's folder in it")


def _conflicts(records: Collection[AnyRecord]) -> Iterator[str]:
    """Sentences on records of one suite that contradict each other."""
    runs = [record for record in records if isinstance(record, RunRecord)]
    texts = sorted({run.data["sha256"] for run in runs})
    if len(texts) > 1:
        shown = ", ".join(text[:12] for text in texts)
        yield f"runs were trained on {len(texts)} texts (sha256 {shown}); their losses can't be compared"
    suites = sorted((r for r in records if isinstance(r, SuiteRecord)), key=rank_of)
    if (settings := len({record.key for record in suites})) > 1:
        versions = sorted({record.suite.version for record in suites})
        yield (
            f"the suite was run with {several(settings, 'setting')} (version "
            f"{', '.join(map(str, versions))}); the newest one gives labels and order"
        )
    sessions = {record.session for record in records if isinstance(record, TimingRecord)}
    if len(sessions) > 1:
        yield f"there are {len(sessions)} sessions of `modbench time`; tables show the newest"
    labels = {key: row.label for record in suites for row in record.suite.rows for key in row.runs}
    for same in _repeated(runs):
        if len({str([end.model_dump(exclude={"audit"}) for end in run.ends]) for run in same}) > 1:
            yield _twice(labels.get(same[0].key, same[0].what.router.name), same[0].what.seed, same)
    seeds = {run.key: run.what.seed for run in runs}
    for again in _repeated([record for record in records if isinstance(record, MeasurementRecord)]):
        if len({str(record.result.metrics) for record in again}) > 1:
            run = again[0].measurement.run
            yield _twice(labels.get(run, run), seeds.get(run, 0), again)


def _repeated(records: Iterable[_Rerun]) -> Iterator[Sequence[_Rerun]]:
    """The groups of several ok records of one key."""
    by_key: dict[str, list[_Rerun]] = defaultdict(list)
    for record in records:
        if record.status == "ok":
            by_key[record.key].append(record)
    yield from (group for _, group in sorted(by_key.items()) if len(group) > 1)


def _twice(label: str, seed: int, records: Sequence[RunRecord | MeasurementRecord]) -> str:
    first = records[0]
    what = "trained"
    if isinstance(first, MeasurementRecord):
        what = f"measured ({first.measurement.measures})"
    machines = "; ".join(sorted({str(record.environment["cpu"]) for record in records}))
    return (
        f"{label}#{seed} was {what} {len(records)} times with other results (on {machines}); the one "
        "that finished last counts"
    )
