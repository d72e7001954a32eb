"""The sections of leaderboard.md on routing: how often depth routers select frequent tokens, and how
often tokens choose no-op experts."""

import re

from modbench.report.leaderboard import Leaderboard
from modbench.report.routing import by_layer, pooled
from modbench.report.row import Row
from modbench.report.table import markdown_table

#: Occurrences below which the selected share of a token is noise.
SEEN = 16
#: Tokens listed at each end.
NAMED = 8

#: Selected share of a token, its text, its occurrences.
_Token = tuple[float, str, int]

_TIMES = "\N{MULTIPLICATION SIGN}"
_SIGNS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


def routed_tokens(board: Leaderboard) -> list[str]:
    """Paragraphs on the tokens that depth routers select; none without depth-routed layers."""
    rows = [
        _by_token(entry.row)
        for entry in board.entries
        if entry.row.routings and entry.row.routings[0]["causal"]["depth"]
    ]
    if not rows:
        return []
    return [
        "## Selected tokens",
        "Share of held-out tokens that depth-routed layers select under the causal rule; of tokens that "
        f"occur {SEEN} times or more (seeds added up), those selected most and least. ␣ is a space, ⏎ a "
        "new line. By position: routing.png; experts: expert_load.png.",
        markdown_table(
            ("scheme", "layers", "tokens by layers selected", "most", "least"), rows, range(5)
        ),
    ]


def _by_token(row: Row) -> list[str]:
    counts = pooled(row.routings, "causal")
    layers = [str(layer["layer"]) for layer in counts["depth"]]
    tokens = sum(counts["entered"])
    entered = (f"{number}: {100 * n / tokens:.1f} %" for number, n in enumerate(counts["entered"]))
    ends = (
        ", ".join(f"{shown(text)} {100 * share:.0f} % of {seen}" for share, text, seen in end) or "-"
        for end in _ends(counts["tokens"], len(layers))
    )
    return [row.label, ", ".join(layers), ", ".join(entered), *ends]


def _ends(tokens: list[tuple[str, int, int]], layers: int) -> tuple[list[_Token], list[_Token]]:
    """The tokens selected most often and least often."""
    known = [(routed / (seen * layers), text, seen) for text, seen, routed in tokens if seen >= SEEN]
    named = min(NAMED, len(known) // 2)
    known.sort(key=lambda token: (-token[0], -token[2], token[1]))
    most = [token for token in known[:named] if token[0] > 0]
    # Of tokens that are never selected, list the most frequent.
    rest = sorted(known[len(most) :], key=lambda token: (token[0], -token[2], token[1]))
    return most, rest[:named]


def shown(text: str) -> str:
    """The text of a token in quotes, on one line, with symbols for white space."""
    if not text:
        return "(end of text)"
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    text = re.sub(r"([␣⏎⇥])\1{3,}", lambda run: f"{run[1]}{_TIMES}{len(run[0])}", text.translate(_SIGNS))
    return f'"{text}"'


def idle_experts(board: Leaderboard) -> list[str]:
    """Paragraphs on no-op experts; none if no record counts their choices."""
    rows = [line for entry in board.entries for line in _by_no_op(entry.row)]
    if not rows:
        return []
    return [
        "## No-op experts",
        "Share of held-out tokens under the causal rule (seeds added up): choices that fall on no-op "
        "experts, and tokens skipped because all their choices do.",
        markdown_table(("scheme", "layer", "choices", "tokens"), rows),
    ]


def _by_no_op(row: Row) -> list[list[str]]:
    rows = []
    for number, layers in by_layer(row.routings, "causal", "experts").items():
        counts = [layer["by_no_op"] for layer in layers if "by_no_op" in layer]
        if not counts:
            continue
        tokens = sum(map(sum, counts))
        # Experts per token; the causal rule drops no assignment.
        each = max(round(sum(layers[-1]["load"]) / sum(counts[-1])), 1)
        choices = sum(n * count for one in counts for n, count in enumerate(one)) / (tokens * each)
        skipped = sum(one[each] for one in counts if len(one) > each) / tokens
        rows.append([row.label, str(number), f"{100 * choices:.1f} %", f"{100 * skipped:.1f} %"])
    return rows
