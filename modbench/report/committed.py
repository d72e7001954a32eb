"""Rows of a shipped suite as modbench's repository has them, shown next to a user's own."""

from dataclasses import replace
from pathlib import Path

from modbench.records.record import rank_of
from modbench.records.result import results_of
from modbench.records.store import read_suite
from modbench.report.compare import machine_differences
from modbench.report.leaderboard.board import board_of
from modbench.report.leaderboard.board_tables import first_table
from modbench.report.markdown import Page


def next_to_committed(folder: Path, committed: Path) -> Page:
    """The table of the rows in ``folder`` (results/<suite>) and those of ``committed`` that it lacks,
    marked as committed, with what differs in the machines. No part if there are none: the folders are
    the same, nothing is lacking, or the newest suite in ``folder`` is another one: a committed row has
    other runs there (text, budget, seeds, training or shape differ), or the held-out loss differs."""
    if folder.resolve() == committed.resolve():
        return Page([])
    records, shipped = read_suite(folder, strict=False), read_suite(committed)
    if not (records.suites and shipped.suites):
        return Page([])
    newest, theirs = records.suites[-1], shipped.suites[-1].suite
    runs, committed_runs = (
        {row.label: {*row.runs} for row in suite.rows} for suite in (newest.suite, theirs)
    )
    measured = [(of.version, of.wanted.get("heldout")) for of in (newest.suite, theirs)]
    if not committed_runs.items() <= runs.items() or measured[0] != measured[1]:
        return Page([])
    mine = [of for of in results_of(records) if of.suite["rank"] == rank_of(newest)]
    labels = {result.label for result in mine}
    others = [
        replace(result, label=f"{result.label} (committed)")
        for result in results_of(shipped)
        if result.label not in labels
    ]
    if not mine or not others:
        return Page([])
    rank_by = mine[0].suite["rank_by"]
    board = board_of([*mine, *others], rank_by, records.audits | shipped.audits)
    if len(board.comparisons) > 1:
        return Page([])
    reasons = machine_differences(others, mine)
    differ = [f"- {reason}" for reason in reasons]
    said = ["The machines or settings differ (committed | yours):", "", *differ]
    said = said if reasons else ["Processor, precision and versions are the same."]
    table = first_table(board, board.comparisons[0])
    return Page(["## Next to the committed rows", table, "\n".join(said)])
