"""What all files of a report show of a results folder: its frames, made once from its records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from modbench.analysis.frames import Row, plain_records
from modbench.analysis.noise import Noise
from modbench.errors import UserError
from modbench.records.record import AuditRecord
from modbench.records.result import Result, results_of
from modbench.records.store import RECORDS, Records, read_suite, refuse_links
from modbench.records.submission import Submission
from modbench.report.audited import by_run
from modbench.report.isoflop.source import IsoFlopSuite, isoflop_suite
from modbench.report.pairs import compared, noise_of, wanted_pairs, with_differences
from modbench.report.routing.course import course_frame
from modbench.report.runs import findings_frame, runs_frame
from modbench.report.schemes import schemes_frame
from modbench.report.table import rounded
from modbench.report.times import Times, labels_of, newest_session, timed_frame


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The frames of a suite; see `modbench.report.runs`, `schemes` and `pairs`, and, with ``results``,
    those that the frame of runs numbers. ``sweep`` is None without isoFLOP grids, ``times`` if nothing
    was timed: those are of the newest session."""

    results: Sequence[Result]
    runs: pd.DataFrame
    findings: pd.DataFrame
    schemes: pd.DataFrame
    pairs: pd.DataFrame
    noise: Mapping[int, Noise]  #: of one run, by comparison
    sweep: IsoFlopSuite | None
    times: Times | None

    def shown(self) -> "Suite":
        """The suite as all files of a report show it: rounded once (`rounded`)."""
        frames = {name: rounded(getattr(self, name)) for name in ("runs", "schemes", "pairs")}
        return replace(self, **frames, sweep=self.sweep and self.sweep.shown())

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The rows of the frame of schemes."""
        return plain_records(self.schemes)

    @cached_property
    def comparisons(self) -> list[list[Row]]:
        """The rows of each comparison."""
        numbers = dict.fromkeys(row["comparison"] for row in self.rows)
        return [[row for row in self.rows if row["comparison"] == number] for number in numbers]

    @cached_property
    def titles(self) -> list[str]:
        """The size and budget of each comparison; with its number, as in leaderboard.csv, if comparisons
        share them, as those of several texts do."""
        titles = []
        for row, *_ in self.comparisons:
            size = "" if row["is_point"] else row["shape"]
            titles.append(", ".join(filter(None, (size, f"{row['budget']:.3g} training FLOPs"))))
        if len({*titles}) == len(titles):
            return titles
        numbers = [rows[0]["comparison"] for rows in self.comparisons]
        return [f"{of}, comparison {number}" for number, of in zip(numbers, titles, strict=True)]

    @cached_property
    def of_row(self) -> Mapping[str, list[Result]]:
        """The results of each row, by its name, ordered by seed."""
        return results_by_row(self.results, self.runs)

    def finished(self, row: Row) -> list[Result]:
        return [result for result in self.of_row[row["row"]] if result.status == "ok"]

    def first(self, row: Row) -> Result:
        return self.results[row["first"]]

    @cached_property
    def course(self) -> pd.DataFrame:
        """Routing over the course of training, see `modbench.report.routing.course`."""
        return course_frame(self.results, [*self.runs["row"]])

    @property
    def state(self) -> Mapping[str, Any]:
        """Runs ``left`` and ``wanted`` of the newest suite, and the pairs that it states,
        ``compare``."""
        return self.results[0].suite if self.results else {"left": 0, "wanted": 0, "compare": ()}

    def pairs_of(self, family: str | None = None, comparison: int | None = None) -> Sequence[Row]:
        """The pairs of ``family``, or of all families, in one comparison or in all."""
        of = self.pairs["family"].notna() if family is None else self.pairs["family"] == family
        if comparison is not None:
            of &= self.pairs["comparison"] == comparison
        return plain_records(self.pairs[of])

    @cached_property
    def routers(self) -> Mapping[str, str]:
        """The router of each scheme, by all names that the figures use."""
        cases = plain_records(self.times.cases) if self.times else ()
        routers = {row["label"].partition("/")[0]: row["router"] for row in cases}
        for row in self.rows:
            routers |= {self.first(row).scheme: row["router"], row["label"]: row["router"]}
        return routers


def results_by_row(results: Sequence[Result], runs: pd.DataFrame) -> dict[str, list[Result]]:
    """``results`` by the row that ``runs``, their frame, gives them, ordered by seed."""
    of_row: dict[str, list[Result]] = {}
    for row, result in sorted(zip(runs["row"], results, strict=True), key=lambda of: of[1].seed):
        of_row.setdefault(row, []).append(result)
    return of_row


def suite_of(
    results: Iterable[Result],
    audits: Mapping[str, AuditRecord] | None = None,
    times: Times | None = None,
    *,
    curves: bool = True,
) -> Suite:
    """The frames of ``results``, of the ``audits`` that they refer to, and of the ``times`` of their
    schemes. ``curves``: make those of isoFLOP suites."""
    results, audits = [*results], audits or {}
    timed = timed_frame(times) if times else None
    runs = runs_frame(results, timed)
    findings = findings_frame(results, runs, audits)
    schemes = schemes_frame(runs, results, by_run(findings), audits, timed)
    of_row = results_by_row(results, runs)
    state = results[0].suite
    wanted = wanted_pairs(schemes, state["compare"])
    noise = noise_of(schemes, wanted, of_row)
    pairs = compared(wanted, of_row, noise, interim=bool(state["left"]))
    schemes = with_differences(schemes, pairs)
    whole = schemes[schemes["seeds"] == schemes["records"].str.count(" ") + 1]
    barred = whole.dropna(subset="barred")
    labels = (label.partition("/")[0] for label in barred["suite_label"])
    unranked = dict(zip(labels, barred["barred"], strict=True))
    is_sweep = curves and any(of.isoflop for of in results)
    sweep = isoflop_suite(results, runs, unranked) if is_sweep else None
    return Suite(
        results=results,
        runs=runs,
        findings=findings,
        schemes=sweep.with_on_curve(schemes) if sweep else schemes,
        pairs=pairs,
        noise=noise,
        sweep=sweep,
        times=times,
    )


def read(
    folder: Path, submissions: Sequence[Submission] = (), *, curves: bool = True
) -> tuple[Records, Suite | None, Times | None]:
    """The records of ``folder`` (``results/<suite>``), its frames with rows of ``submissions``, None if
    no run has finished, and its times.

    Raises:
        UserError: no records, a damaged one, a link in the folder, or timings of one session from
            several machines.
    """
    refuse_links(folder)
    records = read_suite(folder)
    if not (records.runs or records.timings or records.audits or records.suites):
        raise UserError(
            f"{folder}: there are no records in {folder / RECORDS}; run the suite first "
            f"(modbench run {folder.resolve().name}), or point --results at the folder above it"
        )
    times = None
    if records.timings:
        name = records.suites[-1].suite.name if records.suites else "unnamed"
        times = Times(newest_session(records.timings), labels_of(records.suites), name)
    results, audits = results_of(records), dict(records.audits)
    for number, of in enumerate(submissions if results else (), start=len(results)):
        results += [replace(run, suite=results[0].suite, row_number=number) for run in of.results]
        audits |= of.records.audits
    suite = suite_of(results, audits, times, curves=curves) if results else None
    return records, suite, times
