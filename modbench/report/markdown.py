"""Pages: Jinja2 templates in Markdown (``pages/``), with tables that keep their cells."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from modbench.errors import several
from modbench.report.table import Table, escaped, si

#: Stands in a rendered template for the table of that number; no text of a record has it (`escaped`).
_PLACE = re.compile(r"\x00(\d+)\x00")
#: Headings of the sections that a terminal leaves out.
_LATE = re.compile(r"^## (Figures|Details)$", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """Markdown and tables in turns, from the title on."""

    parts: Sequence[str | Table]

    def before_figures(self) -> list[str | Table]:
        """The tables, and the text around them, up to figures and details."""
        lead: list[str | Table] = []
        for part in self.parts:
            if isinstance(part, str) and (late := _LATE.search(part)):
                return [*lead, part[: late.start()].strip()] if late.start() else lead
            lead.append(part)
        return lead

    def to_markdown(self) -> str:
        texts = (part.to_markdown() if isinstance(part, Table) else part for part in self.parts)
        return "\n\n".join(texts) + "\n"


def page(kind: str, **values: Any) -> Page:
    """The page of ``kind``, a template in ``pages/``. A text is inserted as it stands; the filter ``md``
    shows one from a record, or any other source, as plain text."""
    tables: list[Table] = []

    def place(table: Table) -> str:
        tables.append(table)
        return f"\n\x00{len(tables) - 1}\x00\n"

    environment = _environment().overlay()
    environment.filters = {**environment.filters, "table": place}
    text = environment.get_template(f"{kind}.md.j2").render(values)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text))
    parts: list[str | Table] = []
    for number, piece in enumerate(_PLACE.split(text)):
        if number % 2:
            parts.append(tables[int(piece)])
        elif piece.strip():
            parts.append(piece.strip())
    return Page(parts)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": escaped, "si": si, "several": several, "settings": in_words}
    return environment


def in_words(settings: Mapping[str, object]) -> str:
    """Names and values of ``settings`` as Markdown, sorted by name."""
    return ", ".join(f"{escaped(name)} {escaped(settings[name])}" for name in sorted(settings))
