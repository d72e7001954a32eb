"""The comparisons of a results folder, made once from its records: what all files of a report show."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from modbench.errors import UserError
from modbench.records.result import results_of
from modbench.records.store import RECORDS, Records, read_suite, refuse_links
from modbench.report.isoflop.source import IsoFlopSuite, isoflop_suite, unranked_schemes
from modbench.report.leaderboard.board import Board, board_of
from modbench.report.timing.table import TimingTable
from modbench.report.timing.values import labels_of, newest_session


@dataclass(frozen=True)
class Compared:
    """``board`` is None if no run has finished, ``sweep`` without isoFLOP grids, ``times`` if nothing
    was timed: those are of the newest session."""

    records: Records
    board: Board | None
    sweep: IsoFlopSuite | None
    times: TimingTable | None

    @cached_property
    def routers(self) -> Mapping[str, str]:
        """The router of each scheme, by all names that the figures use."""
        cases = self.times.cases if self.times else ()
        routers = {row["label"].partition("/")[0]: row["router"] for row in cases}
        for row in self.board.rows if self.board else ():
            routers |= {row["_first"].scheme: row["router"], row["label"]: row["router"]}
        return routers


def compared_of(
    folder: Path,
    *,
    curves: bool = True,
) -> Compared:
    """The comparisons of ``folder`` (``results/<suite>``). ``curves``: make those of isoFLOP
    suites.

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
        suite = records.suites[-1].suite.name if records.suites else "unnamed"
        session = newest_session(records.timings)
        times = TimingTable(session, labels_of(records.suites), suite)
    results = results_of(records)
    if not results:
        return Compared(records, None, None, times)
    board = board_of(results, records.audits, times)
    sweep = isoflop_suite(results, unranked_schemes(board)) if curves else None
    return Compared(records, board, sweep, times)
