"""The part of leaderboard.md that says which tokens enter the blocks that tokens skip, and how often."""

import re
from collections.abc import Callable

from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.routing import pooled

#: Tokens are named if they were seen so often; of fewer the share is chance.
SEEN = 16
#: So many at each end.
NAMED = 8

#: The share of a token that enters, its text, how often it was seen.
_Token = tuple[float, str, int]

_TIMES = "\N{MULTIPLICATION SIGN}"
_SIGNS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


def routed_tokens(board: Leaderboard, escaped: Callable[[str], str]) -> list[str]:
    """The section's paragraphs; none where no token skips a block. ``escaped`` makes anybody's text
    safe in a table."""
    lines = [line for entry in board.entries if (line := _line(entry, escaped))]
    if not lines:
        return []
    return [
        "## Who is routed",
        "Of held-out tokens in the layers that tokens may skip, the share that enters under the causal "
        f"rule: of those seen {SEEN} times or more (seeds added up), who enters most and least. "
        "␣ is a space, ⏎ a new line. By position and by the router's weight: routing.png; experts: "
        "expert_load.png.",
        "\n".join(
            [
                "| scheme | layers | tokens by layers entered | most | least |",
                "| --- | --- | --- | --- | --- |",
                *lines,
            ]
        ),
    ]


def _line(entry: Entry, escaped: Callable[[str], str]) -> str | None:
    routings = [record.routing for record in entry.row.ok if record.routing]
    if not routings or not routings[0]["causal"]["depth"]:
        return None
    counts = pooled(routings, "causal")
    layers = [layer["layer"] for layer in counts["depth"]]
    tokens = sum(counts["entered"])
    entered = ", ".join(
        f"{number}: {100 * count / tokens:.1f} %" for number, count in enumerate(counts["entered"])
    )
    most, least = _ends(counts["tokens"], len(layers))
    cells = (
        escaped(entry.row.label),
        ", ".join(map(str, layers)),
        entered,
        *(", ".join(_told(token, escaped) for token in end) or "-" for end in (most, least)),
    )
    return f"| {' | '.join(cells)} |"


def _ends(tokens: list[tuple[str, int, int]], layers: int) -> tuple[list[_Token], list[_Token]]:
    """The tokens that enter most, and those that do least."""
    known = [(routed / (seen * layers), text, seen) for text, seen, routed in tokens if seen >= SEEN]
    named = min(NAMED, len(known) // 2)
    known.sort(key=lambda token: (-token[0], -token[2], token[1]))
    most = [token for token in known[:named] if token[0] > 0]
    rest = known[len(most) :]
    # Of those that never enter, the ones most often seen say most.
    rest.sort(key=lambda token: (token[0], -token[2], token[1]))
    return most, rest[:named]


def _told(token: _Token, escaped: Callable[[str], str]) -> str:
    share, text, seen = token
    return f"{escaped(shown(text))} {100 * share:.0f} % of {seen}"


def shown(text: str) -> str:
    """A token's text in quotes and in one line, with signs for its white space."""
    if not text:
        return "(end of text)"
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    text = re.sub(r"([␣⏎⇥])\1{3,}", lambda run: f"{run[1]}{_TIMES}{len(run[0])}", text.translate(_SIGNS))
    return f'"{text}"'
