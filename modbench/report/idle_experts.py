"""The part of leaderboard.md that says how often tokens choose experts that do nothing, by layer."""

from collections.abc import Callable, Sequence
from typing import Any

from modbench.report.leaderboard import Entry, Leaderboard


def idle_experts(board: Leaderboard, escaped: Callable[[str], str]) -> list[str]:
    """The section's paragraphs; none where no expert does nothing, or no record says by layer how often.
    ``escaped`` makes anybody's text safe in a table."""
    lines = [line for entry in board.entries for line in _lines(entry, escaped)]
    if not lines:
        return []
    return [
        "## Experts that do nothing",
        "Of held-out tokens, under the causal rule (seeds added up): the choices that fall on experts "
        "that do nothing, and the tokens that pass by, all of whose choices do.",
        "\n".join(["| scheme | layer | choices | tokens |", "| --- | ---: | ---: | ---: |", *lines]),
    ]


def _lines(entry: Entry, escaped: Callable[[str], str]) -> list[str]:
    found: dict[int, list[Sequence[int]]] = {}
    each: dict[int, int] = {}
    for record in entry.row.ok:
        for layer in record.routing["causal"]["experts"] if record.routing else ():
            if "by_no_op" in layer:
                found.setdefault(layer["layer"], []).append(layer["by_no_op"])
                each[layer["layer"]] = _choices_of_each(layer)
    lines = []
    for number in sorted(found):
        tokens = sum(map(sum, found[number]))
        fallen = sum(n * count for counts in found[number] for n, count in enumerate(counts))
        passing = sum(counts[each[number]] for counts in found[number] if len(counts) > each[number])
        cells = (fallen / (tokens * each[number]), passing / tokens)
        shares = " | ".join(f"{100 * share:.1f} %" for share in cells)
        lines.append(f"| {escaped(entry.row.label)} | {number} | {shares} |")
    return lines


def _choices_of_each(layer: dict[str, Any]) -> int:
    """Experts that each token chooses: under the causal rule nothing is dropped."""
    return max(round(sum(layer["load"]) / sum(layer["by_no_op"])), 1)
