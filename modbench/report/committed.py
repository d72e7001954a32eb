"""Rows of a shipped suite as modbench's repository has them, shown next to a user's own."""

from dataclasses import replace
from pathlib import Path

from modbench.records.result import results_of
from modbench.records.store import read_suite
from modbench.report.compare import machine_differences
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.board_tables import first_table
from modbench.report.sections import Heading, Items, Page


def next_to_committed(folder: Path, committed: Path) -> Page:
    """The table of the rows in ``folder`` (results/<suite>) and those of ``committed`` that it lacks,
    marked as committed, with what differs in the machines. No part if there are none: the folders are
    the same, the suite's version or settings differ, or nothing is lacking."""
    if folder.resolve() == committed.resolve():
        return Page([])
    records, shipped = read_suite(folder, strict=False), read_suite(committed)
    mine = [result for result in results_of(records) if result.suite["name"] != "unnamed"]
    if not mine:
        return Page([])
    labels, version = {result.label for result in mine}, mine[0].suite["version"]
    others = [
        replace(result, label=f"{result.label} (committed)")
        for result in results_of(shipped)
        if result.label not in labels and result.suite["version"] == version
    ]
    rank_by = mine[0].suite["rank_by"]
    board = Leaderboard.of([*mine, *others], rank_by, records.audits | shipped.audits)
    if not others or len(board.comparisons) > 1:
        return Page([])
    reasons = machine_differences(others, mine)
    differ = ["The machines or settings differ (committed | yours):", Items(reasons)]
    return Page(
        [
            Heading("Next to the committed rows"),
            first_table(board, board.comparisons[0]),
            *(differ if reasons else ["Processor, precision and versions are the same."]),
        ]
    )
