"""Writes the derived files of a suite: leaderboard.csv, leaderboard.md, timings.csv, memory.csv,
timings.md, the figures and the page in HTML."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from modbench.records.store import read_bytes, write_files
from modbench.report.captions import CAPTIONS
from modbench.report.compared import Compared, compared_of
from modbench.report.downstream.page import downstream_section
from modbench.report.frame import RESULT, rows_frame, shape_columns
from modbench.report.html.index import PAGE
from modbench.report.isoflop.figures import isoflop_figures
from modbench.report.isoflop.page import isoflop_page
from modbench.report.leaderboard.figures import leaderboard_figures
from modbench.report.leaderboard.page import leaderboard_page
from modbench.report.markdown import Page
from modbench.report.pair_figures import pair_figures
from modbench.report.plot_style import DARK_TOO, Draws, Mark, drawn_files, marks
from modbench.report.routing.cases import RoutingCase, cases_of_board, cases_of_sweep
from modbench.report.routing.figure import routing_figures
from modbench.report.routing.pattern import pattern_figure
from modbench.report.table import Table, to_csv
from modbench.report.timing.page import timing_page
from modbench.report.timing.table import TimingTable

#: All files that a report may have. Those without data are not written, and removed if they are there.
DERIVED = {
    PAGE,
    *("runs.csv", "leaderboard.csv", "leaderboard.md", "optima.csv", "differences.csv"),
    "learning_rates.csv",
    *("timings.csv", "timings.md", "memory.csv"),
    *(f"{name}.{ending}" for name in CAPTIONS for ending in ("png", "svg")),
    *(f"{name}_dark.{ending}" for name in DARK_TOO for ending in ("png", "svg")),
}
#: Relative difference of two numbers that counts as none: their last digits depend on the processor.
_TOLERANCE, _ZERO = 1e-6, 1e-12
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")
#: Files by name.
_Contents = dict[str, bytes | Page | Table | pd.DataFrame]


@dataclass(frozen=True)
class Report:
    """The files of a report, and its pages by their files' names."""

    paths: Sequence[Path]
    pages: Mapping[str, Page]


def write_report(
    suite_folder: Path,
    *,
    html: bool = False,
    csv: bool = False,
    png: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> Report:
    """Derive all files in ``results/<suite>`` from its records and timings (`contents_of`). They are
    written after all contents are made, each in one step, so a report that fails leaves the old files.

    Args:
        suite_folder: ``results/<suite>``
        html: write the page in HTML too, with the index over all suites. A page that is there is
            written again in any case, so that it never differs from the tables.
        csv: write the tables in CSV only, and leave the pages and figures as they are
        png: write the figures in PNG too, such as for slides
        say: called with a sentence if no run has
            finished

    Raises:
        UserError: see `contents_of`; or the folder can't be written to.
    """
    folder = Path(suite_folder)
    contents = contents_of(folder, html=html, csv=csv, png=png, say=say)
    if not contents:
        return Report([], {})
    written = {name: made for name, content in contents.items() if (made := _bytes_of(content))}
    write_files(folder, {name: of for name, of in written.items() if read_bytes(folder / name) != of})
    for name in DERIVED - written.keys():  # of an earlier report
        if not csv or name.endswith(".csv"):
            (folder / name).unlink(missing_ok=True)
    pages = {name: content for name, content in contents.items() if isinstance(content, Page)}
    paths = [folder / name for name in written]
    if PAGE in written:
        from modbench.report.html.index import write_index

        paths += write_index(folder.absolute().parent, say)
    return Report(paths, pages)


def first_difference(
    suite_folder: Path,
    *,
    say: Callable[[str], object] = lambda text: None,
) -> str | None:
    """Return a sentence on the first byte in which the derived files in ``results/<suite>`` differ from
    those that its records give; None if they are equal. Writes nothing. For the arguments see
    `write_report`. Raises UserError: see `contents_of`; or a file can't be read."""
    folder = Path(suite_folder)
    contents = contents_of(folder, say=say)
    made = {name: _bytes_of(content) for name, content in contents.items()}
    frames = {name: of for name, of in contents.items() if isinstance(of, pd.DataFrame)}
    floats = {name: {*frame.columns[frame.dtypes == "Float64"]} for name, frame in frames.items()}
    for name in sorted(DERIVED | made.keys()):
        if name.endswith(".png"):  # the same figure as the SVG, for slides
            continue
        if sentence := _difference(folder / name, made.get(name, b""), floats.get(name, ())):
            return sentence
    return None


def index_difference(results: Path) -> str | None:
    """`first_difference` of the index over the suites of ``results``; None if there is no index."""
    from modbench.report.html.index import has_page, index_page

    return _difference(results / PAGE, index_page(results)) if has_page(results) else None


def _difference(path: Path, expected: bytes, floats: Collection[str] = ()) -> str | None:
    """A sentence on the first byte in which ``path`` is not ``expected``, which is empty if the file
    should not be there. Numbers in the columns ``floats`` of CSV may differ in their last digits."""
    stored = read_bytes(path)
    if stored is None:
        return f"{path} is missing" if expected else None
    if not expected:
        return f"{path} does not follow from the records"
    if stored == expected or (floats and _same_values(stored, expected, floats)):
        return None
    pairs = zip(stored, expected, strict=False)
    shorter = min(len(stored), len(expected))
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), shorter)
    line = expected[:place].count(b"\n") + 1
    drawn = "" if path.suffix in (".csv", ".md") else "; figures depend on the version of matplotlib"
    return f"{path} differs from the records at byte {place} (line {line}){drawn}"


def _same_values(stored: bytes, expected: bytes, floats: Collection[str]) -> bool:
    """Return True if two files in CSV differ in the last digits of the columns ``floats`` only."""
    try:
        tables = [
            list(csv.reader(io.StringIO(text.decode(), newline=""))) for text in (stored, expected)
        ]
        is_float = [name in floats for name in tables[1][0]]
        for cells, wanted in zip(*tables, strict=True):
            for column, (cell, value) in enumerate(zip(cells, wanted, strict=True)):
                if is_float[column] and _NUMBER.fullmatch(cell) and _NUMBER.fullmatch(value):
                    close = math.isclose(float(cell), float(value), rel_tol=_TOLERANCE, abs_tol=_ZERO)
                    wanted[column] = cell if close else value
    except (ValueError, IndexError, csv.Error):  # another number of rows or cells, or no text
        return False
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerows(tables[1])
    return made.getvalue().encode() == stored


def contents_of(
    folder: Path,
    *,
    html: bool = False,
    csv: bool = False,
    png: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> _Contents:
    """The derived files of ``folder`` (``results/<suite>``) by name, or those in CSV only; none if no
    run has finished. They depend on the records only. For the arguments see
    `write_report`.

    Raises:
        UserError: no records, an invalid one, a link in the folder, or timings
            of one session from several machines.
    """
    compared = compared_of(folder)
    records, times = compared.records, compared.times
    if compared.board is None and times is None:
        say(f"{folder}: no run has finished yet; there is nothing to report")
        return {}
    board, sweep = compared.board, compared.sweep
    compared = replace(compared, board=board and board.shown(), sweep=sweep and sweep.shown())
    if csv:
        return _tables_of_results(compared) | (_tables_of_times(times) if times else {})
    look_of = marks(compared.routers)
    sweep, board = compared.sweep, compared.board
    cases = cases_of_sweep(sweep) if sweep else cases_of_board(board) if board else ()
    drawn = drawn_files(draws_of(compared, cases, look_of), png=png)
    contents = drawn | _of_results(compared, drawn)
    if times is not None:
        others = len({timing.session for timing in records.timings}) - 1
        contents |= {"timings.md": timing_page(times, others), **_tables_of_times(times)}
    if html or (folder / PAGE).exists():
        return contents | _html(folder, compared, cases, look_of, contents)
    return contents


def _bytes_of(content: bytes | Page | Table | pd.DataFrame) -> bytes:
    """The bytes of a file; none for a table without rows, which is not written."""
    if isinstance(content, Page):
        return content.to_markdown().encode()
    if isinstance(content, Table):
        return content.to_csv().encode() if content.rows else b""
    if isinstance(content, pd.DataFrame):
        return to_csv(content).encode() if len(content) else b""
    return content


def _html(
    folder: Path,
    compared: Compared,
    cases: Sequence[RoutingCase],
    look_of: dict[str, Mark],
    contents: _Contents,
) -> dict[str, bytes]:
    """The page in HTML of the other ``contents``."""
    from modbench.report.html.page import suite_page  # with a library of templates
    from modbench.report.html.source import SuiteReport

    report = SuiteReport(
        folder=folder.resolve().name,
        compared=compared,
        cases=cases,
        looks=look_of,
        pages={name: content for name, content in contents.items() if isinstance(content, Page)},
        drawings={name: content for name, content in contents.items() if isinstance(content, bytes)},
    )
    return {PAGE: suite_page(report)}


def draws_of(compared: Compared, cases: Sequence[RoutingCase], look_of: Mapping[str, Mark]) -> Draws:
    """The figures of the results of a suite by name."""
    board, sweep = compared.board, compared.sweep
    draws = pair_figures(compared, look_of)
    if sweep is not None:
        draws |= isoflop_figures(sweep, look_of) if sweep.has_curves else {}
    elif board is not None:
        draws |= {**leaderboard_figures(board, look_of), **routing_figures(board)}
    return draws | {"routing_pattern": partial(pattern_figure, cases)}


def _of_results(compared: Compared, drawn: Collection[str]) -> _Contents:
    board, sweep = compared.board, compared.sweep
    if board is None:
        return {}
    shown = (
        isoflop_page(sweep, downstream_section(board), drawn)
        if sweep
        else leaderboard_page(board, drawn)
    )
    return {**_tables_of_results(compared), "leaderboard.md": shown}


def _tables_of_results(compared: Compared) -> _Contents:
    board, sweep = compared.board, compared.sweep
    if board is None:
        return {}
    runs = {"runs.csv": board.runs.drop(columns=RESULT)}
    if sweep is None:
        return runs | {"leaderboard.csv": board.frame(), "differences.csv": board.pairs}
    return runs | {
        "leaderboard.csv": board.frame(sweep.on_curve),
        "learning_rates.csv": sweep.curves.rates,
        "optima.csv": sweep.curves.optima if sweep.has_curves else sweep.curves.optima.head(0),
        "differences.csv": sweep.curves.pairs,
    }


def _tables_of_times(table: TimingTable) -> _Contents:
    return {
        "timings.csv": rows_frame(_with_shape(table.cases)),
        "memory.csv": rows_frame(_with_shape(table.memory)),
    }


def _with_shape(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` of timings, whose ``label`` has that of the shape and whose ``model`` is JSON, with the
    label of the scheme and the shape in columns."""
    with_shape = []
    for row, shape in zip(rows, shape_columns([json.loads(row["model"]) for row in rows]), strict=True):
        scheme, _, label = str(row["label"]).partition("/")
        with_shape.append({"label": scheme, "shape": label or None} | shape | {**row, "label": scheme})
    return with_shape
