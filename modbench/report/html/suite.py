"""index.html of a suite: its tables, a chart, figures, routing and runs in one file."""

import re
from collections.abc import Sequence
from typing import Any

from modbench.errors import several
from modbench.report.html.blocks import Blocks, Section
from modbench.report.html.chart import Chart
from modbench.report.html.passage import passages
from modbench.report.html.prose import inline
from modbench.report.html.runs import Runs
from modbench.report.html.source import SuiteReport
from modbench.report.html.template import data, render
from modbench.report.leaderboard.entry import Entry
from modbench.report.leaderboard.metric_cells import si
from modbench.report.sections import Page

_EMPTY = Page(())
#: Sections of the page leaderboard.md that stand after those on single runs.
_LATE = ("What the columns mean", "Details")


def suite_page(report: SuiteReport) -> bytes:
    """The page of ``report``."""
    runs, chart = Runs(report), Chart(report)
    board, times = (report.pages.get(f"{name}.md", _EMPTY) for name in ("leaderboard", "timings"))
    schemes = sorted(report.sweep.rates) if report.sweep else ()
    blocks = Blocks(report.drawings, runs.places, schemes)
    blocks.read_meanings([board])
    names = _Names()
    found = blocks.sections(board, names, "Results")
    early = [section for section in found if section.title not in _LATE]
    late = [section for section in found if section.title in _LATE]
    points, passage = chart.data(), passages(report)
    fronts = chart.fronts()
    middle = [Section(title="Chart", name=names("Chart"), special="chart")]
    if passage:
        middle.append(Section(title="Routing", name=names("Routing"), special="routing"))
    figures = [section for section in early if section.title == "Figures"]
    rest = [section for section in early if section.title != "Figures"]
    timed = _timed(blocks, times, names)
    listed = [Section(title="Runs", name=names("Runs"), special="runs")] if runs.ordered else []
    sections = [*rest, *middle, *figures, *timed, *listed, *late]
    header = _header(report)
    return render(
        "suite",
        title=header["name"],
        header=header,
        summary=data(header),
        sections=sections,
        chart=points and data(points),
        chart_meanings=points,
        missing=[*map(inline, _missing(report, chart))],
        fronts=fronts and blocks.table(fronts, "Pareto fronts"),
        passage=passage and data(passage),
        passage_schemes=[scheme["name"] for scheme in passage["schemes"]] if passage else [],
        runs=runs,
        folder=report.folder,
        damaged=report.damaged,
        is_named=report.is_named,
        # Last, since all tables and figures add to them.
        meanings=[*blocks.meanings.items()],
        glyphs=blocks.glyphs.definitions(),
    )


class _Names:
    """Makes identifiers of headings, each once on the page."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def __call__(self, heading: str) -> str:
        stem = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        name, number = stem, 1
        while name in self.used:
            number += 1
            name = f"{stem}-{number}"
        self.used.add(name)
        return name


def _timed(blocks: Blocks, page: Page, names: _Names) -> list[Section]:
    """The sections of ``page``, which is timings.md, as one."""
    sections = blocks.sections(page, names, "Times and memory")
    if not sections:
        return []
    timed, *others = sections
    for section in others:
        timed.blocks += [blocks.heading(section.title), *section.blocks]
    return [timed]


def _header(report: SuiteReport) -> dict[str, Any]:
    """The facts of the page's head and of the index."""
    entries, results = report.entries, report.results
    suites = sorted({(str(r.suite["name"]), int(r.suite["version"])) for r in results})
    name, version = suites[-1] if suites and report.is_named else (report.folder, None)
    budgets = sorted({result.budget for result in results})
    seeds = sorted({result.seed for result in results})
    machines = sorted({_machine(r.environment) for r in results})
    return {
        "folder": report.folder,
        "name": name,
        "version": version,
        "rows": len({(entry.scheme, entry.comparison) for entry in entries if entry.best_size}),
        "schemes": len({entry.scheme for entry in entries}),
        "best": _best(report),
        "budgets": [f"{si(budget, 3)}FLOP" for budget in budgets],
        "seeds": several(len(seeds), "seed") if seeds else "",
        "text": ", ".join(sorted({r.run.data.source for r in results})),
        "machines": machines,
        "finished": report.finished[:10],
    }


def _best(report: SuiteReport) -> str:
    """The first row in words: a claim only where the table makes one."""
    if report.sweep:
        budgets = [b for b in report.sweep.budgets if any(x.position for x in report.sweep.lines(b))]
        if not budgets:
            return ""
        line = next(line for line in report.sweep.lines(budgets[-1]) if line.position)
        others = sum(bool(line.group) for line in report.sweep.lines(budgets[-1])) - 1
        loss = line.optimum.loss or 0.0
        return _claimed(line.optimum.scheme, f"{loss:.4f}", others, bool(line.group))
    if report.board is None:
        return ""
    ranked = [entry for entry in report.board.entries if entry.position == 1]
    if not ranked:
        return ""
    first: Entry = ranked[-1]  # of the largest budget
    value = first.row.value(report.board.rank_by)
    group = [e for e in _peers(report, first) if report.board.differences.group(e)]
    shown = f"{value.center:.4f}" if value else "-"
    return _claimed(first.scheme, shown, len(group) - 1, bool(group))


def _peers(report: SuiteReport, entry: Entry) -> Sequence[Entry]:
    entries = report.board.entries if report.board else ()
    return [other for other in entries if other.comparison == entry.comparison]


def _claimed(scheme: str, value: str, others: int, is_tested: bool) -> str:
    if not is_tested:
        return f"{scheme} {value} (not tested: no run was repeated)"
    if others > 0:
        return f"{scheme} {value} (not separable from {several(others, 'other')})"
    return f"{scheme} {value}"


def _machine(environment: dict[str, Any]) -> str:
    """The processor in short."""
    cores = environment.get("cores")
    name = environment.get("gpu") or environment.get("cpu") or "not known"
    return f"{name}, {several(cores, 'core')}" if isinstance(cores, int) else str(name)


def _missing(report: SuiteReport, chart: Chart) -> list[str]:
    """Sentences on what the chart lacks."""
    if not chart.qualities or not chart.costs:
        return ["No chart: it needs two finished rows with a loss and a cost that differ."]
    return chart.missing()
