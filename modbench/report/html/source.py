"""Contents of a suite's page: its report, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from modbench.records.result import Result
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.entry import Entry
from modbench.report.plot_style import Mark
from modbench.report.routing.cases import RoutingCase
from modbench.report.sections import Page
from modbench.report.timing.table import TimingTable

#: Name of a suite's page, and of the index over suites.
PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class SuiteReport:
    """The report of a suite. ``damaged``: sentences on lines that were left out."""

    folder: str  #: name of the suite's folder
    board: Leaderboard | None  #: None: no run has finished
    sweep: IsoFlopSuite | None
    cases: Sequence[RoutingCase]
    times: TimingTable | None
    looks: Mapping[str, Mark]
    pages: Mapping[str, Page]
    drawings: Mapping[str, bytes]  #: SVG files by name
    damaged: Sequence[str]
    finished: str  #: time at which the newest record was finished
    is_named: bool  #: a record of the suite names its rows

    @cached_property
    def entries(self) -> Sequence[Entry]:
        """The rows, those of isoFLOP suites that only try a learning rate excepted."""
        entries = self.board.entries if self.board else ()
        sweep = self.sweep
        if sweep is None:
            return entries
        return [entry for entry in entries if not sweep.is_trial(entry.row.first)]

    @property
    def results(self) -> list[Result]:
        """The runs, row by row."""
        entries = self.board.entries if self.board else ()
        return [result for entry in entries for result in entry.row.records]
