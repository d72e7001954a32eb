"""Writes the derived files of a suite: leaderboard.csv, leaderboard.md, timings.csv, memory.csv,
timings.md, the figures and the page in HTML."""

import csv
import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from modbench.analysis.frames import rows_frame
from modbench.errors import UserError
from modbench.records.store import Records, read_bytes, write_files
from modbench.records.submission import submissions_to
from modbench.report.captions import CAPTIONS
from modbench.report.downstream import downstream_section
from modbench.report.html.index import PAGE, has_page, index_page, write_index
from modbench.report.isoflop.figures import isoflop_figures
from modbench.report.isoflop.page import isoflop_page
from modbench.report.leaderboard import leaderboard_page
from modbench.report.losses import loss_figures
from modbench.report.markdown import Page
from modbench.report.pair_figures import pair_figures
from modbench.report.plot_style import DARK_TOO, Draws, Mark, drawn_files, marks
from modbench.report.routing.cases import RoutingCase, cases_of
from modbench.report.routing.course import course_figures
from modbench.report.routing.figure import routing_figures
from modbench.report.routing.pattern import pattern_figure
from modbench.report.runs import INNER_OF_RUNS, shape_columns
from modbench.report.schemes import INNER_OF_ROWS
from modbench.report.submitted import submitted_frame, submitted_table
from modbench.report.suite import Suite, read
from modbench.report.table import Table, to_csv
from modbench.report.times import Times, shape_of
from modbench.report.timing_page import timing_page

#: Names of the files that the last report wrote, a line each: what it has no data for is removed, and
#: other files of these names are a user's own.
WRITTEN = ".report"
#: All files that a report may have. Those without data are not written.
DERIVED = {
    PAGE,
    *("runs.csv", "leaderboard.csv", "leaderboard.md", "optima.csv", "differences.csv"),
    *("learning_rates.csv", "routing.csv", "submissions.csv"),
    *("timings.csv", "timings.md", "memory.csv"),
    *(f"{name}.{ending}" for name in CAPTIONS for ending in ("png", "svg")),
    *(f"{name}_dark.{ending}" for name in DARK_TOO for ending in ("png", "svg")),
}
#: Relative difference of two numbers that counts as none: their last digits depend on the processor.
_TOLERANCE, _ZERO = 1e-6, 1e-12
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")
#: Files by name.
_Contents = dict[str, bytes | Page | pd.DataFrame]


@dataclass(frozen=True)
class Report:
    """The files of a report, and its pages by their files' names."""

    paths: Sequence[Path]
    pages: Mapping[str, Page]


def write_report(
    suite_folder: Path,
    submissions: Path | None = None,
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
        submissions: folder of submissions, whose rows to this suite join its own
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
    contents = contents_of(folder, submissions, html=html, csv=csv, png=png, say=say)
    if not contents:
        return Report([], {})
    written = {name: made for name, content in contents.items() if (made := _bytes_of(content))}
    earlier = _written(folder) - written.keys()
    gone = {name for name in earlier if not csv or name.endswith(".csv")}
    names = "".join(f"{name}\n" for name in sorted({*written, *earlier} - gone))
    files = written | {WRITTEN: names.encode()}
    write_files(folder, {name: of for name, of in files.items() if read_bytes(folder / name) != of})
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    pages = {name: content for name, content in contents.items() if isinstance(content, Page)}
    paths = [folder / name for name in written]
    if PAGE in written:
        paths += write_index(folder.absolute().parent, say)
    return Report(paths, pages)


def _written(folder: Path) -> set[str]:
    """Names of the files of the last report in ``folder``; others than `DERIVED` are none of a
    report."""
    return DERIVED & {*(read_bytes(folder / WRITTEN) or b"").decode(errors="replace").splitlines()}


def first_difference(
    suite_folder: Path,
    submissions: Path | None = None,
    *,
    say: Callable[[str], object] = lambda text: None,
) -> str | None:
    """Return a sentence on the first byte in which the derived files in ``results/<suite>`` differ from
    those that its records give; None if they are equal. Writes nothing. For the arguments see
    `write_report`. Raises UserError: see `contents_of`; or a file can't be read."""
    folder = Path(suite_folder)
    contents = contents_of(folder, submissions, say=say)
    made = {name: _bytes_of(content) for name, content in contents.items()}
    frames = {name: of for name, of in contents.items() if isinstance(of, pd.DataFrame)}
    floats = {name: {*frame.columns[frame.dtypes == "Float64"]} for name, frame in frames.items()}
    for name in sorted(_written(folder) | made.keys()):
        if name.endswith(".png"):  # the same figure as the SVG, for slides
            continue
        if sentence := _difference(folder / name, made.get(name, b""), floats.get(name, ())):
            return sentence
    return None


def index_difference(results: Path) -> str | None:
    """`first_difference` of the index over the suites of ``results``; None if there is no index."""
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
    submissions: Path | None = None,
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
        UserError: no records, an invalid one, a link in the folder, timings of one session from several
            machines, or a page of a user's own with the name of that in HTML.
    """
    submitted = submissions_to(folder.resolve().name, submissions)
    records, suite, times = read(folder, submitted)
    if suite is None and times is None:
        say(f"{folder}: no run has finished yet; there is nothing to report")
        return {}
    suite = suite and suite.shown()
    tables: _Contents = {"submissions.csv": submitted_frame(submitted, folder)} if submitted else {}
    tables |= (_tables_of(suite) if suite else {}) | (_tables_of_times(times) if times else {})
    if csv:
        return tables
    contents, cases, look_of = tables, [], {}
    if suite:
        cases, look_of = cases_of(suite), marks(suite.routers)
        drawn = drawn_files(draws_of(suite, cases, look_of), png=png)
        contents = (
            drawn
            | contents
            | {"leaderboard.md": _page(suite, drawn, submitted_table(submitted, folder))}
        )
    if times is not None:
        others = len({timing.session for timing in records.timings}) - 1
        contents["timings.md"] = timing_page(times, others)
    if html and (folder / PAGE).exists() and not has_page(folder):
        raise UserError(f"{folder / PAGE}: modbench did not write it; move it, or leave --html out")
    if html or has_page(folder):
        return contents | _html(folder, records, suite, cases, look_of, contents)
    return contents


def _bytes_of(content: bytes | Page | pd.DataFrame) -> bytes:
    """The bytes of a file; none for a table without rows, which is not written."""
    if isinstance(content, Page):
        return content.to_markdown().encode()
    if isinstance(content, pd.DataFrame):
        return to_csv(content).encode() if len(content) else b""
    return content


def _html(
    folder: Path,
    records: Records,
    suite: Suite | None,
    cases: Sequence[RoutingCase],
    look_of: Mapping[str, Mark],
    contents: _Contents,
) -> dict[str, bytes]:
    """The page in HTML of the other ``contents``."""
    from modbench.report.html.page import suite_page  # with altair, which takes long to import

    every = (*records.runs, *records.measurements, *records.timings)
    is_named = bool(records.suites)
    page = suite_page(
        name=suite.state["name"] if is_named and suite else folder.resolve().name,
        version=suite.state["version"] if is_named and suite else None,
        runs=suite.runs if suite else pd.DataFrame(),
        schemes=suite.schemes if suite else pd.DataFrame(),
        pages={name: content for name, content in contents.items() if isinstance(content, Page)},
        drawings={name: content for name, content in contents.items() if isinstance(content, bytes)},
        cases=cases,
        colors={scheme: mark.color for scheme, mark in look_of.items()},
        finished=max((record.finished for record in every), default="")[:10],
        is_named=is_named,
    )
    return {PAGE: page}


def draws_of(suite: Suite, cases: Sequence[RoutingCase], look_of: Mapping[str, Mark]) -> Draws:
    """The figures of the results of a suite by name."""
    draws = pair_figures(suite, look_of)
    if suite.sweep is not None:
        draws |= isoflop_figures(suite.sweep, look_of) if suite.sweep.has_curves else {}
    else:
        draws |= {**loss_figures(suite, look_of), **routing_figures(suite)}
        draws |= course_figures(suite.course, look_of)
    return draws | {"routing_pattern": partial(pattern_figure, cases)}


def _page(suite: Suite, drawn: Collection[str], submitted: Table | None) -> Page:
    if suite.sweep:
        return isoflop_page(suite.sweep, downstream_section(suite), drawn)
    return leaderboard_page(suite, drawn, submitted)


def _tables_of(suite: Suite) -> _Contents:
    tables = {
        "runs.csv": suite.runs.drop(columns=[*INNER_OF_RUNS]),
        "leaderboard.csv": suite.schemes.drop(columns=[*INNER_OF_ROWS]),
    }
    if suite.sweep is None:
        return {**tables, "differences.csv": suite.pairs, "routing.csv": suite.course}
    curves = suite.sweep.curves
    return tables | {
        "learning_rates.csv": curves.rates,
        "optima.csv": curves.optima if suite.sweep.has_curves else curves.optima.head(0),
        "differences.csv": curves.pairs,
    }


def _tables_of_times(times: Times) -> _Contents:
    return {"timings.csv": _with_shape(times.cases), "memory.csv": _with_shape(times.memory)}


def _with_shape(timings: pd.DataFrame) -> pd.DataFrame:
    """``timings``, whose ``label`` has that of the shape and whose ``model`` is JSON, with the label of
    the scheme and the shape in columns."""
    labels = timings["label"].str.extract("(?P<label>[^/]*)/?(?P<shape>.*)").replace("", pd.NA)
    shapes = rows_frame(shape_columns([*timings["model"].map(shape_of)]))
    return pd.concat([labels, shapes, timings.drop(columns="label")], axis=1)
