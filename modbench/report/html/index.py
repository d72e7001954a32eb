"""index.html of a results folder, which lists suites by what their own pages say; and the document that
it is, like the page of a suite: it runs its own scripts and loads nothing."""

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup, escape
from pydantic import TypeAdapter, ValidationError

from modbench.errors import UserError
from modbench.records.store import recorded_suites, write_files
from modbench.report.table import Link, Number, Table, one_line

#: Name of a suite's page, and of the index over suites.
PAGE = "index.html"
_MADE_BY = '<meta name="generator" content="modbench report --html">'
#: Facts that the page of a suite states for the index, and their headings there.
Facts = tuple[str, int | None, int, str, str, str]
HEADINGS = ("suite", "version", "schemes", "training budget", "machine", "newest record")
_FACTS = re.compile(r'<script type="application/json" id="facts">(.*?)</script>', re.DOTALL)
_LONG = 44  #: characters from which a cell may break into lines


def has_page(folder: Path) -> bool:
    """Return True if ``folder`` has a page that this module's package made."""
    path = folder / PAGE
    return path.is_file() and _MADE_BY in path.read_text(encoding="utf-8", errors="replace")[:4000]


def write_index(results: Path, say: Callable[[str], object]) -> list[Path]:
    """Write the index of ``results``; return its path. ``say``: called with a sentence, and nothing is
    written, if another program's file has its name."""
    path = results / PAGE
    if path.exists() and not has_page(results):
        say(f"{path}: modbench did not write it, so it is left as it is; there is no index over suites")
        return []
    write_files(results, {PAGE: index_page(results)})
    return [path]


def index_page(results: Path) -> bytes:
    """The index over the suites of ``results``: those with a page, then those with records only. A suite
    without a page isn't read, which may take long. Raises UserError: a page is damaged."""
    rows = [_row(results / suite) for suite in recorded_suites(results)]
    rows.sort(key=lambda row: row[2] is None)
    table = Table(HEADINGS, rows, left=(0, 3, 4, 5))
    return render(title="Suites", lead=table_html(table, "Suites in this folder"), data={})


def _row(folder: Path) -> Sequence[object]:
    """The facts that the page of ``folder`` states; how to write it, if there is none."""
    text = (folder / PAGE).read_text(encoding="utf-8", errors="replace") if has_page(folder) else ""
    command = f"modbench report {folder.name} --html"
    if (match := _FACTS.search(text)) is None:
        hint = Markup("no page yet: <code>{}</code>").format(command)
        return folder.name, None, None, hint, None, None
    try:
        name, *facts = TypeAdapter(Facts).validate_json(match[1])
    except ValidationError as error:
        raise UserError(
            f"{folder / PAGE}: its facts are damaged; write it again: `{command}`"
        ) from error
    return (Markup('<a href="{}/{}">{}</a>').format(quote(folder.name), PAGE, name), *facts)


def render(*scripts: str, **values: Any) -> bytes:
    """The document with ``values``; ``scripts``: further ones that it runs."""
    names = ("page.html.j2", "page.css", "vendor/sortable.min.js", "page.js")
    assets = Path(__file__).parent / "assets"
    html, style, sorting, script = ((assets / name).read_text(encoding="utf-8") for name in names)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    texts = [Markup(text) for text in (style, f"\n{sorting}{script}", *scripts)]
    hashes = [b64encode(sha256(text.encode()).digest()).decode() for text in texts]
    page = environment.from_string(html).render(texts=texts, hashes=hashes, **values)
    return page.encode(errors="replace")  # half of a surrogate pair in a text of a record


def table_html(table: Table, caption: str) -> Markup:
    """A table that its script can sort, by the numbers of its cells in full. A row is named by its
    scheme, or by its first cell."""
    head = table.headings.index("scheme") if "scheme" in table.headings else 0
    rows = "\n".join(
        f"<tr>{''.join(_cell(cell, n not in table.left, n == head) for n, cell in enumerate(row))}</tr>"
        for row in table.rows
    )
    heads = "".join(
        f'<th scope="col" class="{"" if n in table.left else "n"}">{escape(text)}</th>'
        for n, text in enumerate(table.headings)
    )
    return Markup(
        '<div class="table">\n<div class="scroll" role="region" aria-label="{}" tabindex="0">\n'
        '<table class="sortable asc n-last">\n<caption>{}</caption>\n<thead><tr>{}</tr></thead>\n'
        "<tbody>\n{}\n</tbody>\n</table>\n</div>\n</div>\n"
    ).format(caption, caption, Markup(heads), Markup(rows))


def _cell(value: object, is_number: bool, is_head: bool) -> Markup:
    """A cell of a table; a value that is HTML stays so."""
    text = value if isinstance(value, Markup) else one_line(value)
    if isinstance(value, Link):
        text = Markup('<a href="{}">{}</a>').format(value.address, text)
    attributes = Markup(' class="long"') * (len(text) > _LONG)
    if is_number:
        key = value.value if isinstance(value, Number) else value
        sort = repr(key).removesuffix(".0") if isinstance(key, int | float) else ""
        attributes = Markup(' class="n" data-sort="{}"').format(sort)
    return Markup('<th scope="row"{}>{}</th>' if is_head else "<td{}>{}</td>").format(attributes, text)
