"""Writes the derived files of a suite: leaderboard.csv, leaderboard.md, timings.csv, memory.csv,
timings.md, the figures and the page in HTML."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from modbench.errors import UserError
from modbench.records.result import Result, results_of
from modbench.records.store import RECORDS, Records, read_bytes, read_suite, refuse_links, write_files
from modbench.report.downstream.figure import downstream_figure
from modbench.report.downstream.page import downstream_section
from modbench.report.html.source import PAGE, SuiteReport
from modbench.report.isoflop.figures import isoflop_figures
from modbench.report.isoflop.page import isoflop_page
from modbench.report.isoflop.source import IsoFlopSuite, isoflop_suite, unranked_schemes
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.board_tables import pairs_table
from modbench.report.leaderboard.figures import figures
from modbench.report.leaderboard.page import leaderboard_page
from modbench.report.leaderboard.scheme import (
    scheme_key,
    scheme_names,
    split_label,
    with_shape,
)
from modbench.report.plot_style import Mark, marks
from modbench.report.routing.cases import RoutingCase, cases_of_board, cases_of_sweep
from modbench.report.routing.figure import weight_files
from modbench.report.routing.pattern import pattern_files
from modbench.report.sections import CAPTIONS, Items, Page
from modbench.report.table import Table, escaped
from modbench.report.timing.figure import timing_figures
from modbench.report.timing.page import timing_page
from modbench.report.timing.table import TimingTable
from modbench.report.timing.values import labels_of, newest_session

#: All files that a report may have. Those without data are not written, and removed if they are there.
DERIVED = {
    PAGE,
    *("leaderboard.csv", "leaderboard.md", "optima.csv", "differences.csv"),
    *("learning_rates.csv", "depths.csv"),  # the latter of earlier versions
    *("timings.csv", "timings.md", "memory.csv"),
    *(f"{name}.{ending}" for name in (*CAPTIONS, "downstream") for ending in ("png", "svg")),
}
#: Files by name.
_Contents = dict[str, bytes | Page | Table]


@dataclass(frozen=True)
class Report:
    """The files of a report, and its pages by their files' names."""

    paths: Sequence[Path]
    pages: Mapping[str, Page]


def write_report(
    suite_folder: Path,
    *,
    rank_by: str | None = None,
    html: bool = False,
    csv: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> Report:
    """Derive all files in ``results/<suite>`` from its records and timings (`contents_of`). They are
    written after all contents are made, each in one step, so a report that fails leaves the old files.

    Args:
        suite_folder: ``results/<suite>``
        rank_by: the metric that ranks the table; by default the one of the suite's newest record
        html: write the page in HTML too, with the index over all suites, and leave out lines that are
            damaged. A page that is there is written again in any case, so that it never differs from
            the tables.
        csv: write the tables in CSV only, and leave the pages and figures as they are
        say: called with a sentence for each file that is empty or cut off, and one if no run has
            finished

    Raises:
        UserError: see `contents_of`; or the folder can't be written to.
    """
    folder = Path(suite_folder)
    contents = contents_of(folder, rank_by=rank_by, html=html, csv=csv, say=say)
    if not contents:
        return Report([], {})
    written = {name: made for name, content in contents.items() if (made := _bytes_of(content))}
    write_files(folder, written)
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
    rank_by: str | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> str | None:
    """Return a sentence on the first byte in which the derived files in ``results/<suite>`` differ from
    those that its records give; None if they are equal. Writes nothing. For the arguments see
    `write_report`. Raises UserError: see `contents_of`; or a file can't be read."""
    folder = Path(suite_folder)
    contents = contents_of(folder, rank_by=rank_by, say=say)
    made = {name: _bytes_of(content) for name, content in contents.items()}
    for name in sorted(DERIVED | made.keys()):
        if name.endswith(".png"):  # the same figure as the SVG; git ignores it in results/
            continue
        if sentence := _difference(folder / name, made.get(name, b"")):
            return sentence
    return None


def index_difference(results: Path) -> str | None:
    """`first_difference` of the index over the suites of ``results``; None if there is no index."""
    from modbench.report.html.index import has_page, index_page

    return _difference(results / PAGE, index_page(results)) if has_page(results) else None


def _difference(path: Path, expected: bytes) -> str | None:
    """A sentence on the first byte in which ``path`` is not ``expected``, which is empty if the file
    should not be there."""
    stored = read_bytes(path)
    if stored is None:
        return f"{path} is missing" if expected else None
    if not expected:
        return f"{path} does not follow from the records"
    if stored == expected:
        return None
    pairs = zip(stored, expected, strict=False)
    shorter = min(len(stored), len(expected))
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), shorter)
    line = expected[:place].count(b"\n") + 1
    drawn = "" if path.suffix in (".csv", ".md") else "; figures depend on the version of matplotlib"
    return f"{path} differs from the records at byte {place} (line {line}){drawn}"


def contents_of(
    folder: Path,
    *,
    rank_by: str | None = None,
    html: bool = False,
    csv: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> _Contents:
    """The derived files of ``folder`` (``results/<suite>``) by name, or those in CSV only; none if no
    run has finished. They depend on the records and ``rank_by`` only. For the arguments see
    `write_report`.

    Raises:
        UserError: no records, an invalid one, a link in the folder, an unusable ``rank_by``, or timings
            of one session from several machines.
    """
    refuse_links(folder)
    records = read_suite(folder, strict=False)
    for sentence in records.left_out:
        say(sentence)
    if not records.runs and not records.timings:
        if records.audits or records.suites:
            say(f"{folder}: no run has finished yet; there is nothing to report")
            return {}
        raise UserError(
            f"{folder}: there are no records in {folder / RECORDS}; run the suite first "
            f"(modbench run {folder.resolve().name}), or point --results at the folder above it"
        )
    results = results_of(records)
    times = _times(records)
    compared = _compare(records, results, times, rank_by) if results else None
    if csv:
        tables = _tables_of_results(compared) if compared else {}
        return tables | (_tables_of_times(times) if times else {})
    look_of = marks(_routers(results, times))
    contents = _of_results(compared, look_of) if compared else {}
    if times is not None:
        contents |= _of_times(times, len({timing.session for timing in records.timings}) - 1, look_of)
    left_out = [sentence.replace(f"{folder}/", "") for sentence in records.left_out]
    page = {}
    if html or (folder / PAGE).exists():
        page = _html(folder, records, compared, times, look_of, contents, left_out)
    named = {
        name: _with_left_out(content, left_out) if isinstance(content, Page) else content
        for name, content in contents.items()
    }
    return named | page


def _with_left_out(page: Page, sentences: Sequence[str]) -> Page:
    """``page`` with the records that it lacks named below its title."""
    if not sentences:
        return page
    title, *rest = page.parts
    named = Items([f"**Left out:** {escaped(sentence)}" for sentence in sentences])
    return Page([title, named, *rest])


def _bytes_of(content: bytes | Page | Table) -> bytes:
    """The bytes of a file; none for a table without rows, which is not written."""
    if isinstance(content, Page):
        return content.to_markdown().encode()
    if isinstance(content, Table):
        return content.to_csv().encode() if content.rows else b""
    return content


def _times(records: Records) -> TimingTable | None:
    """The newest session of timings."""
    if not records.timings:
        return None
    suite = str(records.suites[-1].suite["name"]) if records.suites else "unnamed"
    return TimingTable(newest_session(records.timings), labels_of(records.suites), suite)


def _routers(results: Sequence[Result], times: TimingTable | None) -> dict[str, str]:
    """The router of each scheme, by all names that the figures use."""
    names = scheme_names(results)
    routers = {split_label(row.label)[0]: row.router for row in (times.cases if times else ())}
    for result in results:
        router = result.run.router.name
        routers |= {result.scheme: router, names[scheme_key(result)]: router}
    return routers


@dataclass(frozen=True)
class _Compared:
    """The comparisons of a suite's results, and the runs whose routing is drawn."""

    board: Leaderboard
    sweep: IsoFlopSuite | None
    cases: Sequence[RoutingCase]


def _compare(
    records: Records,
    results: list[Result],
    times: TimingTable | None,
    rank_by: str | None,
) -> _Compared:
    by = rank_by or (records.suites[-1].suite["rank_by"] if records.suites else "heldout_loss")
    board = Leaderboard.of(results, by, records.audits, times)
    sweep = isoflop_suite(results, unranked_schemes(board), times)
    return _Compared(board, sweep, cases_of_sweep(sweep) if sweep else cases_of_board(board))


def _html(
    folder: Path,
    records: Records,
    compared: _Compared | None,
    times: TimingTable | None,
    look_of: dict[str, Mark],
    contents: _Contents,
    left_out: Sequence[str],
) -> dict[str, bytes]:
    """The page in HTML of the other ``contents``."""
    from modbench.report.html.suite import suite_page  # with a library of templates

    every = (*records.runs, *records.measurements, *records.timings)
    report = SuiteReport(
        folder=folder.resolve().name,
        board=compared.board if compared else None,
        sweep=compared.sweep if compared else None,
        cases=compared.cases if compared else (),
        times=times,
        looks=look_of,
        pages={name: content for name, content in contents.items() if isinstance(content, Page)},
        drawings={
            name: content
            for name, content in contents.items()
            if isinstance(content, bytes) and name.endswith(".svg")
        },
        damaged=left_out,
        finished=max((record.finished for record in every), default=""),
        is_named=bool(records.suites),
    )
    return {PAGE: suite_page(report)}


def _of_results(compared: _Compared, look_of: dict[str, Mark]) -> _Contents:
    board, sweep, cases = compared.board, compared.sweep, compared.cases
    drawn = pattern_files(cases) | weight_files(cases) | downstream_figure(board, look_of)
    if sweep is None:
        drawn |= figures(board, look_of)
        page = leaderboard_page(board, drawn)
    else:
        drawn |= isoflop_figures(sweep, look_of) if sweep.has_curves else {}
        page = isoflop_page(sweep, downstream_section(board), drawn)
    return {**_tables_of_results(compared), "leaderboard.md": page, **drawn}


def _tables_of_results(compared: _Compared) -> _Contents:
    board, sweep = compared.board, compared.sweep
    if sweep is None:
        return {"leaderboard.csv": board.table(), "differences.csv": pairs_table(board)}
    curves = sweep.curves
    return {
        "leaderboard.csv": board.table(sweep.on_curve),
        "learning_rates.csv": Table.of_frame(curves.rates),
        "optima.csv": Table.of_frame(curves.optima if sweep.has_curves else curves.optima.head(0)),
        "differences.csv": Table.of_frame(curves.pairs),
    }


def _of_times(table: TimingTable, others: int, look_of: dict[str, Mark]) -> _Contents:
    drawn = timing_figures(table, look_of)
    page = timing_page(table, others, drawn)
    return {"timings.md": page, **_tables_of_times(table), **drawn}


def _tables_of_times(table: TimingTable) -> _Contents:
    return {
        "timings.csv": Table.of(with_shape([asdict(row) for row in table.cases])),
        "memory.csv": Table.of(with_shape(table.memory)),
    }
