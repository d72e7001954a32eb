"""index.html of a suite: its Markdown pages with sortable tables, a chart and the passage viewer."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from modbench.records.sections import FirstChoice
from modbench.report.html.chart import chart_script, chart_spec
from modbench.report.html.index import HEADINGS, Facts, render, table_html
from modbench.report.markdown import Page
from modbench.report.routing.cases import RoutingCase, layers_of, with_passage
from modbench.report.table import Table, si

_LARGEST = 500_000  #: bytes of a figure that a page may hold
_NOT_NAMED = "No record of a suite names these runs. Run the suite again with its file to name them."
#: What stands in place of the title of a Markdown page, by file.
_TITLES = {"leaderboard.md": "", "timings.md": "## Times and memory\n"}


def suite_page(
    *,
    name: str,
    version: int | None,
    runs: pd.DataFrame,
    schemes: pd.DataFrame,
    pages: Mapping[str, Page],
    drawings: Mapping[str, bytes],
    cases: Sequence[RoutingCase],
    colors: Mapping[str, str],
    finished: str,
    is_named: bool,
) -> bytes:
    """The page of the suite ``name``: the tables of leaderboard.md, chart and passage, then its
    figures and details, then timings.md. ``runs``, ``schemes``: the frames of runs.csv and
    leaderboard.csv; ``drawings``: SVG files by name; ``colors``: by scheme; ``finished``: the date of
    the newest record; ``is_named``: a record of a suite names the runs."""
    budgets = [f"{si(budget, 3)}FLOP" for budget in sorted({*runs.get("budget", ())})]
    # Each is "cpu NAME, dtype float32, threads 1", and a cell may have several.
    processors = {of for cell in runs.get("processor", ()) for of in cell.split("; ")}
    machines = sorted({of.partition(",")[0].partition(" ")[2] for of in processors})
    told = (len({*schemes.get("label", ())}), ", ".join(budgets), "; ".join(machines), finished)
    facts: Facts = (name, version, *told)
    texts = [_html(pages[file], title, drawings) for file, title in _TITLES.items() if file in pages]
    lead, *rest = map(Markup, re.split(r"(?=<h2>)", "".join(texts)))
    sections = [(of.partition("</h2>")[0].striptags(), of) for of in rest]
    chart, passages = chart_spec(schemes, colors), _passages(cases)
    return render(
        *([chart_script()] if chart else ()),
        title=name,
        facts=dict(zip(HEADINGS[1:], facts[1:], strict=True)),
        lead=Markup("" if is_named else f'<p role="note">{_NOT_NAMED}</p>\n') + lead,
        sections=sections,
        data={"facts": facts, "chart-data": chart, "passage-data": passages},
    )


def _html(page: Page, title: str, drawings: Mapping[str, bytes]) -> str:
    """``page`` under another ``title``. Raw HTML and links of its texts stay text."""

    def image(tokens: Any, index: int, *_: Any) -> str:
        file, text = str(tokens[index].attrs["src"]), tokens[index].content
        svg = drawings.get(file, b"")
        if len(svg) > _LARGEST:
            return f'Too large for this page: <a href="{escape(file)}">{escape(text)}</a>'
        address = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        return f'<img src="{address}" alt="{escape(text)}">' if svg else ""

    parser = MarkdownIt("commonmark", {"html": False})
    # Texts of a page have no link, and a text from a record must not make one.
    parser.disable(["link", "autolink", "html_block", "html_inline", "reference"])
    parser.renderer.rules["image"] = image  # type: ignore[attr-defined]
    html, caption = [], "Results"
    for part in page.parts:
        if isinstance(part, Table):
            html.append(table_html(part, part.caption or caption))
            continue
        html.append(parser.render(re.sub(r"\A# .*\n?", title, part)))
        for heading in re.findall("<h[23]>(.*?)</h[23]>", html[-1])[-1:]:
            caption = Markup(heading).striptags()
    return "".join(html)


def _passages(cases: Sequence[RoutingCase]) -> list[dict[str, Any]]:
    """The passage of each scheme: its tokens, and of each layer None, if it processes all of them; or of
    each token its first expert, 0 in a layer without experts, and -1 if it skips the layer."""
    passages = []
    for case in with_passage(cases):
        layers: list[Sequence[int] | None] = []
        for _, layer in layers_of(case):
            if isinstance(layer, FirstChoice):
                layers.append(layer.first)
            else:
                layers.append([int(bit) - 1 for bit in layer.selected] if layer else None)
        texts = case.passage.texts if case.passage else ()
        passages.append({"name": case.name, "texts": texts, "layers": layers})
    return passages
