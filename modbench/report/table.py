"""The writer of tables: Markdown and CSV whose cells stay text, whatever they hold."""

import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LONGEST = 400
#: What a spreadsheet takes for the start of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def escaped(text: object) -> str:
    """``text`` from any source as one line of plain Markdown: no HTML, links, cell boundaries, invisible
    or direction-changing characters."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(line, quote=False))
    # GitHub makes links of bare addresses: https://example.org, www.example.org.
    line = re.sub(r"(?i)(?<=[a-z])(?=://)|(?<=\bwww)(?=\.)", r"\\", line)
    # Markdown leaves an underscore inside a word alone, and token_choice reads better so.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], left: Iterable[int] = (0,)
) -> str:
    """A Markdown table; its cells are escaped, the columns ``left`` are aligned left."""
    rule = ["---" if column in set(left) else "---:" for column in range(len(heads))]
    lines = [map(escaped, heads), rule, *(map(escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """``rows`` of the same columns as CSV, numbers at full precision, None as an empty cell. A text that
    a spreadsheet would take for a formula gets an apostrophe in front."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"'{value}" if value.startswith(_FORMULA) else value.replace("\r", " ")


def in_words(settings: Mapping[str, object]) -> str:
    """Names and values of ``settings`` as Markdown, sorted by name."""
    return ", ".join(f"{escaped(name)} {escaped(settings[name])}" for name in sorted(settings))


def made_by(code: Mapping[str, object]) -> str:
    """Version, commit and local changes of the modbench that wrote a line."""
    commit = f"commit {code['commit'] or 'not known'}"
    return f"modbench {code['version']}, {commit}{' with local changes' if code['dirty'] else ''}"
