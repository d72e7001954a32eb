"""A table as a value, and its forms: Markdown, text, and rich for a terminal. Cells stay text in each of
them, whatever they hold. And frames in CSV."""

import html
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from tabulate import tabulate

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

#: Characters of a cell that are shown: an exception may quote a whole tensor.
_LONGEST = 400
#: Starts of the headings that a narrow terminal shows first: a loss alone doesn't say what is better.
_FIRST = ("scheme", "minus dense", "validation loss", "loss at the optimum")
#: Characters that start a formula in a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Number(str):
    """A number as a cell shows it, with its value at full precision."""

    value: float

    def __new__(cls, text: str, value: float) -> "Number":
        number = super().__new__(cls, text)
        number.value = value
        return number


class Link(str):
    """A text of a cell that leads to an ``address``, one that starts with https:// or is relative."""

    address: str

    def __new__(cls, text: str, address: str) -> "Link":
        link = super().__new__(cls, text)
        link.address = quote(address, safe=":/?&=#%@+,;")
        return link


@dataclass(frozen=True)
class Table:
    """Cells under headings; None: no value. Columns ``left``, counted from 0, are aligned left, the
    others right. HTML pages show the ``caption``."""

    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: Collection[int] = (0,)
    caption: str = ""

    def about(self, caption: str) -> "Table":
        """The table with a caption."""
        return replace(self, caption=caption)

    @classmethod
    def of(cls, records: Sequence[Mapping[str, object]], left: Collection[int] = (0,)) -> "Table":
        """A table with a row for each of ``records``, which hold their cells by heading."""
        headings = [*records[0]] if records else []
        return cls(headings, [[record[name] for name in headings] for record in records], left)

    def to_markdown(self) -> str:
        rule = ["---" if align == "left" else "---:" for align in self._alignment]
        lines = [map(escaped, self.headings), rule, *(map(escaped, row) for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_text(self) -> str:
        """Columns with spaces between them."""
        headings, *rows = self._lines()
        align = self._alignment
        return str(tabulate(rows, headings, "plain", disable_numparse=True, colalign=align))

    def to_rich(self, width: int) -> "Group":
        """A table for a terminal of ``width`` columns: those of `_FIRST`, then the others, as they
        fit, at the width of their longest cell; and a sentence that names the rest."""
        from rich.cells import cell_len  # records and report are imported without rich
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        headings, *rows = self._lines()
        # A heading may break between words, a cell may not.
        widths = [
            max(map(cell_len, [*heading.split(), *cells]), default=0)
            for heading, *cells in zip(headings, *rows, strict=True)
        ]
        first = [n for start in _FIRST for n, text in enumerate(headings) if text.startswith(start)]
        shown, room = set[int](), width - 1
        for column in dict.fromkeys((*first, *range(len(headings)))):
            needed = widths[column] + 3  # a space to each side and a rule
            if needed <= room:
                shown.add(column)
                room -= needed
        drawn = RichTable()
        for column in sorted(shown):
            align = self._alignment[column]
            drawn.add_column(Text(headings[column]), justify=align, width=widths[column])
        for row in rows:
            drawn.add_row(*(Text(row[column]) for column in sorted(shown)))
        hidden = [text for column, text in enumerate(headings) if column not in shown]
        return Group(drawn, *([Text(f"Not shown: {', '.join(hidden)}.")] if hidden else []))

    @property
    def _alignment(self) -> list[Literal["left", "right"]]:
        return ["left" if column in self.left else "right" for column in range(len(self.headings))]

    def _lines(self) -> list[list[str]]:
        """Headings and rows as text on one line each."""
        return [[one_line(cell) for cell in row] for row in (self.headings, *self.rows)]


def si(value: float, digits: int = 4) -> str:
    """``value`` with ``digits`` significant digits and an SI prefix: 1.234 T."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = min(max(int(exponent) // 3, 0), 8)
    number = f"{float(mantissa) * 10 ** (int(exponent) - 3 * power):#.{digits}g}".rstrip(".")
    return f"{number} {' kMGTPEZY'[power]}".rstrip()


#: Significant digits of a number in any file: two types of processor agree on them.
DIGITS = 9


def rounded(frame: "pd.DataFrame") -> "pd.DataFrame":
    """``frame`` with `DIGITS` significant digits in its columns of floats. A budget names its row."""

    shown = frame.copy()
    for name in shown.columns[(shown.dtypes == "Float64") & (shown.columns != "budget")]:
        shown[name] = shown[name].map(rounded_value, na_action="ignore").astype("Float64")
    return shown


def rounded_value(value: Any) -> Any:
    """``value`` with `DIGITS` significant digits, if it is a float."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def to_csv(frame: "pd.DataFrame") -> str:
    """``frame``, rounded, in CSV, without columns that are empty in all rows; a missing value is an
    empty cell. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    shown = rounded(frame.loc[:, (frame.notna() & (frame != "").fillna(False)).any().to_numpy(bool)])
    for name in shown.columns[shown.dtypes.map(lambda kind: kind in ("string", "object"))]:
        shown[name] = shown[name].map(_csv_cell, na_action="ignore")
    shown.columns = [_csv_cell(name) for name in shown.columns]
    return str(shown.to_csv(index=False, lineterminator="\n"))


def escaped(text: object) -> str:
    """``text`` from any source as one line of plain Markdown: no HTML, links, cell boundaries, invisible
    or direction-changing characters."""
    if isinstance(text, Link):
        return f"[{escaped(str(text))}]({text.address})"
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(one_line(text), quote=False))
    # GitHub makes links of bare addresses: https://example.org, www.example.org.
    line = re.sub(r"(?i)(?<=[a-z])(?=://)|(?<=\bwww)(?=\.)", r"\\", line)
    # Markdown leaves an underscore inside a word alone, and token_choice reads better so.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def one_line(text: object) -> str:
    """``text`` on one line, without invisible or direction-changing characters, cut where it is long."""
    line = " ".join(str("-" if text is None else text).split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which readers take for the end of a row
    return f"'{text}" if text.startswith(_FORMULA) else text
