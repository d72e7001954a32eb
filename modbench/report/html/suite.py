"""index.html of a suite: its tables, a chart, figures and routing in one file."""

import re
from collections.abc import Sequence
from typing import Any

from modbench.errors import several
from modbench.records.metrics import METRICS
from modbench.report.html.blocks import Blocks, Section
from modbench.report.html.chart import Chart
from modbench.report.html.passage import passages
from modbench.report.html.prose import inline
from modbench.report.html.source import SuiteReport
from modbench.report.html.template import data, render
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.leaderboard.differences import TO_BEST
from modbench.report.leaderboard.metric_cells import ranking_column, si
from modbench.report.sections import Page

_EMPTY = Page(())
#: Sections of the page leaderboard.md that stand after those on single runs.
_LATE = ("What the columns mean", "Details")


def suite_page(report: SuiteReport) -> bytes:
    """The page of ``report``."""
    chart = Chart(report)
    board, times = (report.pages.get(f"{name}.md", _EMPTY) for name in ("leaderboard", "timings"))
    blocks = Blocks(report.drawings)
    blocks.read_meanings([board])
    names = _Names()
    found = blocks.sections(board, names, "Results")
    early = [section for section in found if section.title not in _LATE]
    late = [section for section in found if section.title in _LATE]
    points, passage = chart.data(), passages(report)
    middle = [Section(title="Chart", name=names("Chart"), special="chart")]
    if passage:
        middle.append(Section(title="Routing", name=names("Routing"), special="routing"))
    figures = [section for section in early if section.title == "Figures"]
    rest = [section for section in early if section.title != "Figures"]
    timed = _timed(blocks, times, names)
    sections = [*rest, *middle, *figures, *timed, *late]
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
        passage=passage and data(passage),
        passage_schemes=[scheme["name"] for scheme in passage["schemes"]] if passage else [],
        folder=report.folder,
        damaged=report.damaged,
        is_named=report.is_named,
        meanings=[*blocks.meanings.items()],  # last, since all tables add to them
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


def _best(report: SuiteReport) -> dict[str, str] | None:
    """The first row, of the largest budget, with its figure and whether that was tested; None if no row
    can be ranked."""
    if report.sweep:
        return _best_optimum(report.sweep)
    board = report.board
    ranked = [entry for entry in board.entries if entry.position == 1] if board else []
    if board is None or not ranked:
        return None
    first = ranked[-1]
    peers = [entry for entry in board.entries if entry.comparison == first.comparison]
    group = [entry for entry in peers if board.differences.group(entry)]
    by = ranking_column(board).heading.partition(" (")[0]
    value, unit = first.row.value(board.rank_by), METRICS[board.rank_by].unit
    shown = f"{value.center:.4f} {unit}" if value else "-"
    to_best = board.differences.of(TO_BEST, first.comparison)
    claim = _claim(len(group), [pair.difference.untold for pair in to_best])
    return {"by": by, "name": first.scheme, "value": shown, "claim": claim}


def _best_optimum(sweep: IsoFlopSuite) -> dict[str, str] | None:
    for budget in reversed(sweep.budgets):
        rows = [row for row in sweep.best(budget) if row.position]
        if rows:
            of_best = [of for of in sweep.rows.pairs if (of.budget, of.family) == (budget, "best")]
            untold = [of.no_verdict_because or "" for of in of_best]
            claim = _claim(sum(bool(row.group) for row in rows), untold)
            shown = f"{rows[0].loss:.4f} nats/token"
            by = f"held-out loss at the optimum, {budget:.3g} FLOPs"
            return {"by": by, "name": rows[0].scheme, "value": shown, "claim": claim}
    return None


def _claim(group: int, untold: Sequence[str]) -> str:
    """The claim of the first row. ``group``: the number of rows that may be the best; ``untold``:
    reasons why the differences to it have no verdict, if they have none."""
    if not group:
        return f"not tested: {next(filter(None, untold), 'no run was repeated')}"
    return (
        f"not separable from {several(group - 1, 'other')}" if group > 1 else "separable from all others"
    )


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
