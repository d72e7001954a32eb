"""Contents of a suite's page: its report, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from modbench.records.result import Result
from modbench.report.isoflop.sweep import Sweep
from modbench.report.leaderboard.board import Board
from modbench.report.leaderboard.rows import Row
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
    board: Board | None  #: None: no run has finished
    sweep: Sweep | None
    cases: Sequence[RoutingCase]
    times: TimingTable | None
    looks: Mapping[str, Mark]
    pages: Mapping[str, Page]
    drawings: Mapping[str, bytes]  #: SVG files by name
    damaged: Sequence[str]
    finished: str  #: time at which the newest record was finished
    is_named: bool  #: a record of the suite names its rows

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The rows, those of isoFLOP suites that only try a learning rate excepted."""
        rows = self.board.rows if self.board else ()
        sweep = self.sweep
        if sweep is None:
            return rows
        return [row for row in rows if not sweep.is_trial(row["_first"])]

    @property
    def results(self) -> list[Result]:
        """The runs, row by row."""
        rows = self.board.rows if self.board else ()
        return [result for row in rows for result in row["_results"]]
