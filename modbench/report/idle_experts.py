"""The section of leaderboard.md on how often tokens choose no-op experts, by layer."""

from collections.abc import Sequence
from typing import Any

from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.markdown_table import escaped, table


def idle_experts(board: Leaderboard) -> list[str]:
    """Paragraphs of the section; none if no record counts choices of no-op experts."""
    rows = [row for entry in board.entries for row in _rows(entry)]
    if not rows:
        return []
    return [
        "## Experts that do nothing",
        "Of held-out tokens, under the causal rule (seeds added up): the choices that fall on experts "
        "that do nothing, and the tokens that pass by, all of whose choices do.",
        table(("scheme", "layer", "choices", "tokens"), rows),
    ]


def _rows(entry: Entry) -> list[list[str]]:
    found: dict[int, list[Sequence[int]]] = {}
    each: dict[int, int] = {}
    for record in entry.row.ok:
        for layer in record.routing["causal"]["experts"] if record.routing else ():
            if "by_no_op" in layer:
                found.setdefault(layer["layer"], []).append(layer["by_no_op"])
                each[layer["layer"]] = _choices_of_each(layer)
    rows = []
    for number in sorted(found):
        tokens = sum(map(sum, found[number]))
        fallen = sum(n * count for counts in found[number] for n, count in enumerate(counts))
        passing = sum(counts[each[number]] for counts in found[number] if len(counts) > each[number])
        cells = (fallen / (tokens * each[number]), passing / tokens)
        shares = (f"{100 * share:.1f} %" for share in cells)
        rows.append([escaped(entry.row.label), str(number), *shares])
    return rows


def _choices_of_each(layer: dict[str, Any]) -> int:
    """Experts per token; the causal rule drops no assignment."""
    return max(round(sum(layer["load"]) / sum(layer["by_no_op"])), 1)
