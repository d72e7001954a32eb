"""Parts of the page of a suite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from modbench.records.result import Result
from modbench.report.compared import Compared
from modbench.report.leaderboard.rows import Row
from modbench.report.markdown import Page
from modbench.report.plot_style import Mark
from modbench.report.routing.cases import RoutingCase


@dataclass(frozen=True, kw_only=True)
class SuiteReport:
    """Parts of the page of a suite."""

    folder: str  #: name of the suite's folder
    compared: Compared
    cases: Sequence[RoutingCase]
    looks: Mapping[str, Mark]
    pages: Mapping[str, Page]
    drawings: Mapping[str, bytes]  #: SVG files by name

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The rows, those of isoFLOP suites that only try a learning rate excepted."""
        board, sweep = self.compared.board, self.compared.sweep
        rows = board.rows if board else ()
        return rows if sweep is None else [row for row in rows if not sweep.is_trial(row["_first"])]

    @cached_property
    def results(self) -> list[Result]:
        """The runs, row by row."""
        board = self.compared.board
        return [result for row in (board.rows if board else ()) for result in row["_results"]]
