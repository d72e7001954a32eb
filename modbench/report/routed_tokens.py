"""The section of leaderboard.md on how often depth routers select frequent tokens."""

import re

from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.markdown_table import escaped, table
from modbench.report.routing import pooled

#: Occurrences below which the selected share of a token is noise.
SEEN = 16
#: Tokens listed at each end.
NAMED = 8

#: Selected share of a token, its text, its occurrences.
_Token = tuple[float, str, int]

_TIMES = "\N{MULTIPLICATION SIGN}"
_SIGNS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


def routed_tokens(board: Leaderboard) -> list[str]:
    """Paragraphs of the section; none without depth-routed layers."""
    rows = [row for entry in board.entries if (row := _row(entry))]
    if not rows:
        return []
    return [
        "## Who is routed",
        "Of held-out tokens in the layers that tokens may skip, the share that enters under the causal "
        f"rule: of those seen {SEEN} times or more (seeds added up), who enters most and least. "
        "␣ is a space, ⏎ a new line. By position and by the router's weight: routing.png; experts: "
        "expert_load.png.",
        table(("scheme", "layers", "tokens by layers entered", "most", "least"), rows, left=range(5)),
    ]


def _row(entry: Entry) -> list[str] | None:
    routings = entry.row.routings
    if not routings or not routings[0]["causal"]["depth"]:
        return None
    counts = pooled(routings, "causal")
    layers = [layer["layer"] for layer in counts["depth"]]
    tokens = sum(counts["entered"])
    entered = ", ".join(
        f"{number}: {100 * count / tokens:.1f} %" for number, count in enumerate(counts["entered"])
    )
    most, least = _ends(counts["tokens"], len(layers))
    ends = (", ".join(_told(token) for token in end) or "-" for end in (most, least))
    return [escaped(entry.row.label), ", ".join(map(str, layers)), entered, *ends]


def _ends(tokens: list[tuple[str, int, int]], layers: int) -> tuple[list[_Token], list[_Token]]:
    """The tokens selected most often and least often."""
    known = [(routed / (seen * layers), text, seen) for text, seen, routed in tokens if seen >= SEEN]
    named = min(NAMED, len(known) // 2)
    known.sort(key=lambda token: (-token[0], -token[2], token[1]))
    most = [token for token in known[:named] if token[0] > 0]
    rest = known[len(most) :]
    # Of tokens that are never selected, list the most frequent.
    rest.sort(key=lambda token: (token[0], -token[2], token[1]))
    return most, rest[:named]


def _told(token: _Token) -> str:
    share, text, seen = token
    return f"{escaped(shown(text))} {100 * share:.0f} % of {seen}"


def shown(text: str) -> str:
    """The text of a token in quotes, on one line, with symbols for white space."""
    if not text:
        return "(end of text)"
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    text = re.sub(r"([␣⏎⇥])\1{3,}", lambda run: f"{run[1]}{_TIMES}{len(run[0])}", text.translate(_SIGNS))
    return f'"{text}"'
