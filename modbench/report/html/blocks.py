"""Parts of a page as what its template shows: prose, tables and figures, in sections."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from modbench.report.html.prose import block, inline
from modbench.report.sections import Heading, Items, Page, Part, Picture
from modbench.report.table import Markdown, Number, Table

#: Tables with more rows get a box that filters them.
FILTER_ABOVE = 8
_LARGEST = 500_000  #: bytes of a figure that a page may hold
_WIDTH = re.compile(rb'<svg[^>]* width="([\d.]+)pt"')
_WIDE = 600  #: points: such a figure has a line of its own
_LONGEST = 400  #: characters of a cell, as in the table's other forms
_LEADING = re.compile(r"([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?: ([kMGTPEZY]))?(?![\w.])")
_POWERS = {prefix: 10.0 ** (3 * power) for power, prefix in enumerate("kMGTPEZY", start=1)}


@dataclass(frozen=True)
class Cell:
    """``sort``: what the column is sorted by, if it isn't the text; ``is_head``: it names its row."""

    text: str
    number: bool
    is_head: bool
    sort: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    name: str  #: identifier on the page
    caption: str
    #: text, number column, names the rows, place of its meaning
    headings: Sequence[tuple[str, bool, bool, int | None]]
    rows: Sequence[Sequence[Cell]]
    repeats: bool = False  #: the caption is the heading above it
    kind: str = "table"

    @property
    def filtered(self) -> bool:
        return len(self.rows) > FILTER_ABOVE


@dataclass(frozen=True, kw_only=True)
class FigureBlock:
    name: str
    caption: Markup
    title: str
    file: str
    source: str | None  #: address that holds the drawing; None: it is too large for a page
    is_wide: bool
    kind: str = "figure"


@dataclass(frozen=True, kw_only=True)
class Prose:
    html: Markup
    kind: str = "prose"


@dataclass(kw_only=True)
class Section:
    """Blocks under a heading of the second level. ``special``: a part with a template of its own."""

    title: str
    name: str
    blocks: list[Any] = field(default_factory=list)
    special: str = ""


@dataclass
class Blocks:
    """Turns parts of pages into blocks. ``meanings`` of headings gets those of all pages."""

    drawings: Mapping[str, bytes]
    meanings: dict[str, tuple[Markup, str]] = field(default_factory=dict)
    _tables: int = 0
    _figures: int = 0

    def read_meanings(self, pages: Iterable[Page]) -> None:
        """Take the meanings of columns from the tables of ``pages`` that explain them."""
        for page in pages:
            for part in page.parts:
                if isinstance(part, Table) and tuple(part.headings) == ("column", "meaning", "better"):
                    for heading, meaning, better in part.rows:
                        self.meanings[str(heading)] = inline(str(meaning)), str(better)

    def sections(self, page: Page, name: Callable[[str], str], lead: str) -> list[Section]:
        """The sections of ``page``. ``name``: makes the identifier of a heading; ``lead``: heading of
        what stands above the first one."""
        sections = [Section(title=lead, name=name(lead))]
        heading = lead
        sentence: str | None = None  # that may be a caption
        for part in page.parts:
            if sentence is not None and not isinstance(part, Picture):
                sections[-1].blocks.append(Prose(html=block(sentence)))
                sentence = None
            match part:
                case Heading(_, 1):
                    continue
                case Heading(text, 2):
                    heading = text
                    sections.append(Section(title=text, name=name(text)))
                case str():
                    sentence = part
                case Picture():
                    sections[-1].blocks += self.figure(part, sentence or "")
                    sentence = None
                case _:
                    if isinstance(part, Heading):
                        heading = part.text
                    sections[-1].blocks.append(self.block(part, heading))
        if sentence is not None:
            sections[-1].blocks.append(Prose(html=block(sentence)))
        return [section for section in sections if section.blocks]

    def block(self, part: Part, heading: str) -> Any:
        match part:
            case Heading(text, _):
                return self.heading(text)
            case Items(items):
                lines = Markup("\n").join(Markup("<li>{}</li>").format(inline(item)) for item in items)
                return Prose(html=Markup("<ul>\n{}\n</ul>").format(lines))
            case Table():
                return self.table(part, heading)
        raise TypeError(f"no block of {part!r}")

    def heading(self, text: str) -> Prose:
        return Prose(html=Markup("<h3>{}</h3>").format(text))

    def figure(self, picture: Picture, caption: str) -> list[FigureBlock]:
        """The figure of ``picture``; none if it was not drawn."""
        svg = self.drawings.get(picture.file)
        if svg is None:
            return []
        self._figures += 1
        name = f"f{self._figures}"
        width = _WIDTH.search(svg)
        data = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        return [
            FigureBlock(
                name=name,
                caption=inline(caption),
                title=picture.alt,
                file=picture.file,
                source=data if len(svg) <= _LARGEST else None,
                is_wide=width is not None and float(width[1]) > _WIDE,
            )
        ]

    def table(self, table: Table, heading: str) -> TableBlock:
        self._tables += 1
        known = [*self.meanings]
        # A row is named by its scheme, or by its first cell.
        head = next((n for n, text in enumerate(table.headings) if text == "scheme"), 0)
        headings = [
            (
                text,
                column not in table.left,
                column == head,
                known.index(text) if text in self.meanings else None,
            )
            for column, text in enumerate(table.headings)
        ]
        rows = [
            [_cell(cell, column not in table.left, column == head) for column, cell in enumerate(row)]
            for row in table.rows
        ]
        caption = table.caption or heading
        return TableBlock(
            name=f"t{self._tables}",
            caption=caption,
            headings=headings,
            rows=rows,
            repeats=caption == heading,
        )


def _cell(value: object, number: bool, is_head: bool) -> Cell:
    if isinstance(value, Markdown):
        return Cell(inline(value), number=False, is_head=is_head)
    text = " ".join(str("-" if value is None else value).split())
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    sort = _sort_value(value, text) if number else None
    return Cell(text, number, is_head, sort)


def _sort_value(value: object, text: str) -> str:
    """The number in a cell at full precision, as text; empty without one."""
    if isinstance(value, Number):
        return repr(value.value).removesuffix(".0")
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int | float):
        return repr(value).removesuffix(".0")
    match = _LEADING.match(text)
    if match is None:
        return ""
    digits, prefix = match.groups()
    number = float(digits.replace(",", "")) * _POWERS.get(prefix, 1.0)
    return f"{number:.12g}"
