"""A page as a list of parts, and the structure that the pages leaderboard.md share: tables, downstream
tasks, figures, columns, details."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from modbench.records.result import Result
from modbench.report.leaderboard.columns import Column, column_table
from modbench.report.leaderboard.page import figures_among, origin_of, suites_of
from modbench.report.markdown import Page
from modbench.report.table import Table, escaped


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Items:
    """A list with bullets."""

    items: Sequence[str]


@dataclass(frozen=True)
class Picture:
    alt: str
    file: str


#: A str is a paragraph. All texts are Markdown; only the cells of tables are not.
Part = str | Heading | Items | Picture | Table


def page_of(parts: Iterable[Part]) -> Page:
    """The page of ``parts``."""
    return Page([part if isinstance(part, Table) else as_markdown(part) for part in parts])


def as_markdown(part: Part) -> str:
    match part:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Items(items):
            return "\n".join(f"- {item}" for item in items)
        case Picture(alt, file):
            return f"![{alt}]({file})"
        case Table():
            return part.to_markdown()
    return part


def suite_page(
    records: Sequence[Result],
    tables: Iterable[Part],
    *,
    downstream: Iterable[Part],
    drawn: Collection[str],
    columns: Iterable[Column],
    manual: str,
    details: Iterable[Part],
    notes: Iterable[str],
) -> Page:
    """The page of ``records``. ``drawn``: names of the files with figures; ``columns``: of the first
    tables; ``manual``: the topic of `modbench docs` that explains them."""
    parts: list[Part] = [Heading(f"Suite {suites_of(records)}", 1), *tables, *downstream]
    if figures := figures_among(drawn):
        parts.append(Heading("Figures"))
        for name, sentence in figures:
            parts += [sentence, Picture(name.replace("_", " "), f"{name}.svg")]
    parts += [Heading("What the columns mean"), column_table(columns)]
    parts.append(f"More, and what one may conclude: `modbench docs {manual}`.")
    parts += [Heading("Details"), *details, Heading("Notes", 3)]
    origin = origin_of(records)
    made = [f"Machine: {escaped(machine)}." for machine in origin["machines"]]
    made += [f"Code: {escaped(code)}." for code in origin["codes"]]
    made += [f"Plugin: {escaped(n)}, code with sha256 {escaped(s)}." for n, s in origin["plugins"]]
    return page_of([*parts, Items([*notes, *made])])
