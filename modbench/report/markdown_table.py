"""Markdown tables, and text that is safe inside them."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence

_LONGEST = 400


def escaped(text: str) -> str:
    """``text`` from any source as one line of plain text in a Markdown table: no HTML, links, cell
    boundaries, invisible or direction-changing characters."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(line, quote=False))
    # Markdown leaves an underscore inside a word alone, and token_choice reads better so.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)) -> str:
    """A table of cells that are escaped already; the columns ``left`` are aligned left."""
    rules = ["---" if column in set(left) else "---:" for column in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rules, *rows))


def made_by(code: Mapping[str, object]) -> str:
    """Version, commit and local changes of the modbench that wrote a line."""
    commit = f", commit {code['commit']}" if code["commit"] else ", commit not known"
    return f"modbench {code['version']}{commit}{' with local changes' if code['dirty'] else ''}"
