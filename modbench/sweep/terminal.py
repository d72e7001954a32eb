"""Prints messages and leaderboard.md on a terminal, with as many columns as fit."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

_NOTES = "\n## Notes"  # a terminal shows the part before the notes


def say(console: Console, text: str) -> None:
    """Print a message of modbench."""
    console.print(f"modbench: {text}", markup=False, highlight=False, soft_wrap=True)


def show_leaderboard(markdown: str, console: Console | None = None) -> None:
    """Print the tables of ``markdown`` and the text around them, up to its notes."""
    console = console or Console()
    text = markdown.partition(_NOTES)[0].rstrip()
    if not console.is_terminal:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" |")])
            continue
        if rows:
            _show_table(rows, console)
            rows = []
        console.print(line.lstrip("# "), markup=False, highlight=False)


def _show_table(rows: list[list[str]], console: Console) -> None:
    heads, rules, *body = rows
    table = Table()
    room = console.width - 1
    for number, head in enumerate(heads):
        cells = [row[number] for row in body]
        width = max(len(word) for word in [*head.split(), *cells])
        room -= width + 3  # a space to each side and a rule
        if room < 0:
            break
        justify = "right" if rules[number].endswith(":") else "left"
        table.add_column(Text(head), justify=justify, width=width)  # type: ignore[arg-type]
    shown = len(table.columns)
    for row in body:
        table.add_row(*(Text(cell) for cell in row[:shown]))
    console.print(table)
    if shown < len(heads):
        more = ", ".join(heads[shown:])
        console.print(f"Not shown: {more}.", markup=False, highlight=False)
