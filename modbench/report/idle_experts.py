"""The section of leaderboard.md on how often tokens choose no-op experts, by layer."""

from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.markdown_table import escaped, table
from modbench.report.routing import by_layer


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
    rows = []
    for number, layers in by_layer(entry.row.routings, "causal", "experts").items():
        if "by_no_op" not in layers[0]:
            continue
        counts = [layer["by_no_op"] for layer in layers]
        tokens = sum(map(sum, counts))
        # Experts per token; the causal rule drops no assignment.
        each = max(round(sum(layers[-1]["load"]) / sum(counts[-1])), 1)
        fallen = sum(n * count for one in counts for n, count in enumerate(one))
        passing = sum(one[each] for one in counts if len(one) > each)
        shares = (f"{100 * share:.1f} %" for share in (fallen / (tokens * each), passing / tokens))
        rows.append([escaped(entry.row.label), str(number), *shares])
    return rows
