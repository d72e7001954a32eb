"""A table in each of its forms: cells that hold anything are read back as they are, or cleaned."""

import csv
import io
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from modbench.analysis.frames import rows_frame
from modbench.report.table import Table, to_csv

AWKWARD = [
    *("a|b", "a\\|b", "two\nlines\r\nof text", "=1+1", "-1", "@x", "<b>bold</b>", "a & b", "&lt;"),
    *("`code`", "*a* __b__ $c$ ~~d~~", "token_choice", "_a_", "[x](y)", "50 % # {} ^ ~ \\", "±0.1 µs †"),
    *("日本語", "a\u202eb\x00", "", "  spaces  ", "www.example.org", "https://example.org/a"),
]
CELLS = st.one_of(st.sampled_from(AWKWARD), st.text())
GRIDS = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=4)
)


def table_of(grid: list[list[str]]) -> Table:
    return Table([f"h{column}" for column in range(len(grid[0]))], grid)


def cleaned(grid: list[list[str]]) -> list[list[str]]:
    """``grid`` as it is shown: on one line, and printable."""
    lines = [[" ".join(cell.split()) for cell in row] for row in grid]
    return [["".join(c if c.isprintable() else "\ufffd" for c in cell) for cell in row] for row in lines]


class Reader(HTMLParser):
    """The text of the cells of HTML tables, and the tags and links in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.others: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")
        elif tag not in ("table", "thead", "tbody"):
            self.others.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


@given(GRIDS)
def test_markdown_shows_cells_as_plain_text(grid: list[list[str]]) -> None:
    rendered = (
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(table_of(grid).to_markdown())
    )
    reader = Reader(rendered)
    assert reader.others == []
    assert [[cell.strip() for cell in row] for row in reader.rows[1:]] == cleaned(grid)


@given(GRIDS)
def test_csv_keeps_cells_without_formulas(grid: list[list[str]]) -> None:
    frame = rows_frame([dict(enumerate(row)) for row in grid]).rename(columns=str)
    rows = list(csv.reader(io.StringIO(to_csv(frame.assign(last=1)), newline="")))[1:]
    kept = [column for column in range(len(grid[0])) if any(row[column] for row in grid)]
    for (*read, _), cells in zip(rows, grid, strict=True):
        row = [cells[column] for column in kept]
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in read)
        for cell, value in zip(read, row, strict=True):
            text = value.replace("\r", " ")
            assert cell in (f"'{text}", text)


def test_csv_has_nine_digits_nothing_for_none_and_no_empty_columns() -> None:
    frame = rows_frame([{"a": 1 / 3, "b": None, "c": ""}, {"b": -1, "a": 2.0, "d": None}])
    assert to_csv(frame) == "a,b\n0.333333333,\n2.0,-1\n"


def on_terminal(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, no_color=True).print(table.to_rich(width))
    return out.getvalue()


WIDE = Table(
    ("rank", "scheme", "loss (nats/token)", "a long word for steps"),
    [(1, "mod", "1.2500", 82), (2, "vanilla [red]", "1.5000", 66)],
    left=(1,),
)


def test_terminal_shows_the_columns_it_has_room_for_and_names_the_rest() -> None:
    text = on_terminal(WIDE, 46)
    assert "1.2500" in text
    assert "vanilla [red]" in text
    assert "Not shown: a long word for steps." in text
    assert max(len(line) for line in text.splitlines() if line.startswith("│")) <= 46
    assert "Not shown" not in on_terminal(WIDE, 60)


def test_a_narrow_terminal_keeps_the_difference_to_dense() -> None:
    headings = ("group", "scheme", "validation loss (nats/token)", "minus dense (nats/token)", "audit")
    row = (
        "not separable",
        "expert_choice",
        "3.214 ± 0.151",
        "-0.138 (-0.200 to -0.077) better",
        "passed 12",
    )
    text = on_terminal(Table(headings, [row]), 80)
    assert all(row[column] in text for column in (1, 2, 3))
    assert "Not shown: group" in text
