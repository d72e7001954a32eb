"""index.html of a suite: its Markdown pages with sortable tables, a chart and the passage."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from modbench.errors import several
from modbench.report.html.chart import Chart
from modbench.report.html.passage import passages
from modbench.report.html.source import SuiteReport
from modbench.report.html.template import data, render
from modbench.report.leaderboard.metric_cells import si
from modbench.report.markdown import Page
from modbench.report.table import Number, Table

#: Tables with more rows get a box that filters them.
FILTER_ABOVE = 8
_LARGEST = 500_000  #: bytes of a figure that a page may hold
_LONG, _WIDE = 44, 22  #: characters from which a cell, or the name of a row, may break into lines
_LONGEST = 400  #: characters of a cell, as in the table's other forms


def suite_page(report: SuiteReport) -> bytes:
    """The page of ``report``: the tables of leaderboard.md, chart and passage, then its figures and
    details, then timings.md."""
    body, header, chart = _Body(report.drawings), _header(report), Chart(report)
    lead: Markup | None = None
    rest: list[Markup] = []
    for name in ("leaderboard.md", "timings.md"):
        sections = body.sections(report.pages[name]) if name in report.pages else []
        if lead is None and sections and name == "leaderboard.md":
            lead, *sections = sections
        elif sections:
            sections[0] = body.heading("Times and memory", 2) + sections[0]
        rest += sections
    points, passage = chart.data(), passages(report.cases)
    return render(
        "suite",
        header=header,
        summary=data(header),
        lead=lead or "",
        rest=rest,
        chart=points,
        chart_data=points and data(points),
        missing=[body.text(sentence) for sentence in chart.missing()],
        passage=passage,
        passage_data=passage and data(passage),
        headings=body.headings,
        is_named=bool(report.compared.records.suites),
    )


@dataclass
class _Body:
    """Turns parts of pages into HTML. ``headings``: name and text of those of the second level."""

    drawings: Mapping[str, bytes]
    headings: list[tuple[str, str]] = field(default_factory=list)
    _tables: int = 0

    @cached_property
    def _parser(self) -> MarkdownIt:
        parser = MarkdownIt("commonmark", {"html": False})
        # Texts of a page have no link, and a text from a record must not make one.
        parser.disable(["link", "autolink", "html_block", "html_inline", "reference"])
        parser.renderer.rules["image"] = self._image  # type: ignore[attr-defined]
        return parser

    def text(self, markdown: str) -> Markup:
        """Paragraphs, lists and figures. Raw HTML and links stay text."""
        return Markup(self._parser.render(markdown))

    def sections(self, page: Page) -> list[Markup]:
        """``page`` without its title, cut before each heading of the second level."""
        sections = [Markup("")]
        caption = "Results"
        for part in page.parts:
            if isinstance(part, Table):
                sections[-1] += self.table(part, part.caption or caption)
                continue
            for block in re.split(r"^(#+ [^\n]*)\n?", part, flags=re.MULTILINE):
                marks, _, heading = block.partition(" ")
                if {*marks} != {"#"}:
                    sections[-1] += self.text(block)
                    continue
                caption = heading
                if len(marks) == 2:
                    sections.append(Markup(""))
                if len(marks) > 1:
                    sections[-1] += self.heading(heading, len(marks))
        return sections

    def heading(self, text: str, level: int) -> Markup:
        """A heading; that of a section can be linked to."""
        shown = Markup(self._parser.renderInline(text))
        if level > 2:
            return Markup("<h3>{}</h3>\n").format(shown)
        stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        taken = {"chart", "routing", *dict(self.headings)}
        name = f"{stem}-{len(self.headings)}" if stem in taken else stem
        self.headings.append((name, shown.striptags()))
        return Markup('<h2 id="{}">{}</h2>\n').format(name, shown)

    def _image(self, tokens: Sequence[Token], index: int, *_: Any) -> Markup:
        file, text = str(tokens[index].attrs["src"]), tokens[index].content
        svg = self.drawings.get(file)
        if svg is None:
            return Markup("")
        if len(svg) > _LARGEST:
            return Markup('Too large for this page: <a href="{}">{}</a>').format(file, text)
        address = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        return Markup('<span class="paper"><img src="{}" alt="{}"></span>').format(address, text)

    def table(self, table: Table, caption: str) -> Markup:
        """A table that its script can sort, by the numbers of its cells in full."""
        self._tables += 1
        # A row is named by its scheme, or by its first cell.
        head = next((n for n, text in enumerate(table.headings) if text == "scheme"), 0)
        numbers = [column not in table.left for column in range(len(table.headings))]
        heads = Markup("").join(
            Markup('<th scope="col"{}><span class="h">{}</span></th>').format(
                _class("n" * number, "head-column" * (column == head)), text
            )
            for column, (text, number) in enumerate(zip(table.headings, numbers, strict=True))
        )
        rows = Markup("\n").join(
            Markup("<tr>{}</tr>").format(
                Markup("").join(
                    _cell(cell, number, column == head)
                    for column, (cell, number) in enumerate(zip(row, numbers, strict=True))
                )
            )
            for row in table.rows
        )
        return Markup(
            '<div class="table" id="t{}" data-filter="{}">\n<div class="scroll" role="region" '
            'aria-label="{}" tabindex="0">\n<table class="sortable asc n-last">\n'
            "<caption>{}</caption>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>\n"
            "</div>\n</div>\n"
        ).format(self._tables, int(len(table.rows) > FILTER_ABOVE), caption, caption, heads, rows)


def _class(*names: str) -> Markup:
    shown = " ".join(filter(None, names))
    return Markup(' class="{}"').format(shown) if shown else Markup("")


def _cell(value: object, number: bool, is_head: bool) -> Markup:
    text = " ".join(str("-" if value is None else value).split())
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    kind = "wide" if is_head and len(text) > _WIDE else ""
    kind = "long" if not number and len(text) > _LONG else "n" if number else kind
    key = value.value if isinstance(value, Number) else value
    sort = Markup("")
    if number:
        is_number = isinstance(key, int | float) and not isinstance(key, bool)
        sort = Markup(' data-sort="{}"').format(repr(key).removesuffix(".0") if is_number else "")
    if is_head:
        return Markup('<th scope="row"{}{}>{}</th>').format(_class(kind), sort, text)
    return Markup("<td{}{}>{}</td>").format(_class(kind), sort, text)


def _header(report: SuiteReport) -> dict[str, Any]:
    """The facts of the page's head and of the index."""
    rows, results, records = report.rows, report.results, report.compared.records
    suites = sorted({(str(r.suite["name"]), int(r.suite["version"])) for r in results})
    name, version = suites[-1] if suites and records.suites else (report.folder, None)
    budgets = sorted({result.budget for result in results})
    every = (*records.runs, *records.measurements, *records.timings)
    return {
        "folder": report.folder,
        "name": name,
        "version": version,
        "rows": len({(row["label"], row["comparison"]) for row in rows}),
        "schemes": len({row["label"] for row in rows}),
        "budgets": [f"{si(budget, 3)}FLOP" for budget in budgets],
        "seeds": _seeds(report),
        "text": ", ".join(sorted({r.run.data.source for r in results})),
        "machines": sorted({_machine(r.environment) for r in results}),
        "finished": max((record.finished for record in every), default="")[:10],
    }


def _seeds(report: SuiteReport) -> str:
    """Seeds in words; of isoFLOP curves those of a size, as the page's first lines have them."""
    if sweep := report.compared.sweep:
        counts = sorted({point.seeds for point in sweep.rows.points} - {0})
        fewest = f"{counts[0]} to " if len(counts) > 1 else ""
        return f"{fewest}{several(counts[-1], 'seed')} a size" if counts else ""
    seeds = {result.seed for result in report.results}
    return several(len(seeds), "seed") if seeds else ""


def _machine(environment: Mapping[str, Any]) -> str:
    """The processor in short."""
    cores = environment.get("cores")
    name = environment.get("gpu") or environment.get("cpu") or "not known"
    return f"{name}, {several(cores, 'core')}" if isinstance(cores, int) else str(name)
