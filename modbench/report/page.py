"""Writes the derived files of a suite: leaderboard.csv, leaderboard.md, timings.csv, memory.csv,
timings.md and the figures."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from modbench.errors import UserError
from modbench.records.store import RECORDS, SuiteRecords, latest, read_suite, write_files
from modbench.report.captions import CAPTIONS
from modbench.report.leaderboard.scheme import scheme_names, split_label, with_shape
from modbench.report.table import csv_table
from modbench.report.timing.values import newest_run

#: All files that a report may have. Those without data are not written, and removed if they are there.
DERIVED = {
    *("leaderboard.csv", "leaderboard.md", "optima.csv", "differences.csv"),
    "learning_rates.csv",
    *("timings.csv", "timings.md", "memory.csv"),
    *(f"{name}.{ending}" for name in (*CAPTIONS, "downstream") for ending in ("png", "svg")),
}


def write_report(
    suite_folder: Path,
    *,
    rank_by: str | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> list[Path]:
    """Derive all files in ``results/<suite>`` from its records and timings; return their paths.

    The bytes depend on the records and ``rank_by`` only. Files are written after all contents are
    made, each in one step, so a report that fails leaves the old files.

    Args:
        suite_folder: ``results/<suite>``
        rank_by: the metric that ranks the table; by default the one of the suite's newest version
        say: called with a sentence for each file that is empty or cut off, and one if no cell has
            finished

    Raises:
        UserError: no records or timings, an invalid one, an unusable ``rank_by``, timings of one run
            from several machines, or a folder that can't be written to.
    """
    folder = Path(suite_folder)
    found = read_suite(folder)
    for sentence in found.cut:
        say(sentence)
    if found.audits and not found.cells and not found.timings:
        say(f"{folder}: no cell has finished yet; there is nothing to report")
        return []
    if not found.cells and not found.timings:
        raise UserError(
            f"{folder}: there are no records in {folder / RECORDS}; run the suite first "
            f"(modbench run {folder.resolve().name}), or point --results at the folder above it"
        )
    contents = _of_cells(found, rank_by) if found.cells else {}
    contents |= _of_timings(found) if found.timings else {}
    write_files(folder, contents)
    for name in DERIVED - contents.keys():  # of an earlier report
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in contents]


def _schemes(found: SuiteRecords) -> set[str]:
    """All schemes of the suite: each has the same mark in all figures."""
    cells = [record.cell for record in latest(found.cells)]
    labels = [timing.cell["router"]["label"] for timing in found.timings if timing.cell["router"]]
    labels += [cell["router"]["label"] for cell in cells]
    return {split_label(label)[0] for label in labels} | {*scheme_names(cells).values()}


def _of_cells(found: SuiteRecords, rank_by: str | None) -> dict[str, bytes]:
    # Every cell imports records and their store; only a report needs matplotlib and scipy.
    from modbench.report.downstream.figure import downstream_figure
    from modbench.report.downstream.page import downstream_section
    from modbench.report.isoflop.csv import differences_csv, optima_csv, rates_csv
    from modbench.report.isoflop.figures import isoflop_figures
    from modbench.report.isoflop.page import isoflop_page
    from modbench.report.isoflop.sweep import sweep_of
    from modbench.report.leaderboard.board import Leaderboard
    from modbench.report.leaderboard.figures import figures
    from modbench.report.leaderboard.markdown import markdown
    from modbench.report.plot_style import marks
    from modbench.report.routing.cases import cases_of_board, cases_of_sweep
    from modbench.report.routing.pattern import pattern_files
    from modbench.report.routing.weights import weight_files

    look_of = marks(_schemes(found))
    newest = max(found.cells, key=lambda record: (record.suite["version"], record.suite["rank_by"]))
    board = Leaderboard.of(found.cells, rank_by or newest.suite["rank_by"], found.audits)
    sweep = sweep_of(found.cells, board, found.timings)
    cases = cases_of_sweep(sweep) if sweep else cases_of_board(board)
    drawn = pattern_files(cases) | weight_files(cases) | downstream_figure(board, look_of)
    if sweep:
        drawn |= isoflop_figures(sweep, look_of) if sweep.has_curves else {}
        pages = {"leaderboard.csv": board.csv(sweep.on_curve)}
        pages |= {
            "leaderboard.md": isoflop_page(sweep, downstream_section(board), drawn, board.elsewhere)
        }
        pages |= {"learning_rates.csv": rates_csv(sweep)}
        pages |= {"optima.csv": optima_csv(sweep)} if sweep.has_curves else {}
        if differences := differences_csv(sweep):
            pages |= {"differences.csv": differences}
    else:
        drawn |= figures(board, look_of)
        pages = {"leaderboard.csv": board.csv(), "leaderboard.md": markdown(board, drawn)}
    return {name: text.encode() for name, text in pages.items()} | drawn


def _of_timings(found: SuiteRecords) -> dict[str, bytes]:
    from modbench.report.plot_style import marks
    from modbench.report.timing.figure import timing_figures
    from modbench.report.timing.page import timing_page
    from modbench.report.timing.table import TimingTable

    table = TimingTable(newest_run(found.timings))
    others = len({timing.run for timing in found.timings}) - 1
    drawn = timing_figures(table, marks(_schemes(found)))
    pages = {"timings.md": timing_page(table, others, drawn)}
    for name, rows in (
        ("timings.csv", [asdict(row) for row in table.cases]),
        ("memory.csv", table.memory),
    ):
        pages |= {name: csv_table(with_shape(rows))} if rows else {}
    return {name: text.encode() for name, text in pages.items()} | drawn
