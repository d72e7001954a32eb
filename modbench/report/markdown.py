"""leaderboard.md: all rows with their ranks, remarks on them, notes and metrics."""

from collections.abc import Iterable
from typing import Any

from modbench.report.downstream_page import downstream_section
from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.metric_cells import metric_columns, metric_text, si
from modbench.report.metrics import METRICS
from modbench.report.routing_cases import cases_of_board, routing_section
from modbench.report.row import MACHINE, Row
from modbench.report.scheme import differing
from modbench.report.size_tables import audit_columns, size_tables
from modbench.report.table import escaped, in_words, made_by, markdown_table
from modbench.report.timing import machine_in_words

#: Settings that the page states above the table of each comparison.
_CONDITIONS = {"budget", "sequence", "heldout_tokens"}

_FLOPS = (
    "FLOPs: convention `model` (2 per multiply-accumulate; causal attention costs its triangle; logits "
    "and routers counted, the embedding look-up free; backward dX and dW of each matmul where needed). "
    "Nominal: by the options; realised: by what the causal rule selected on held-out text. Column "
    "FLOPs: by a closed form, which the audit compares with a counter; or counted, by running the "
    "layers on the meta device."
)
_TIMES = (
    "MB: 10^6 bytes. Unstable: the times spread too far for their median to be trusted. Loaded: the "
    "machine had other work while they were taken."
)
_CSV = (
    "In leaderboard.csv a metric of kind exact is one column (`low..high` if seeds disagree); quality "
    "is the mean over seeds, with `_low` and `_high` of its 95 % t-interval (empty for one seed); timed "
    "is `_median`, `_iqr`, `_n`, `_stable` and `_loaded` (several seeds: median of medians, widest IQR; "
    "`_iqr` and `_stable` are empty where a seed has one value). A text that a spreadsheet would take "
    "for a formula has an apostrophe in front."
)
_EXACT = "which is exact: rows of equal figures share a rank."
_ONE_SEED = (
    "One seed gives no interval: the rank is the order of the figures, not a claim that one scheme is "
    "better than another."
)
_SHARED = (
    "± is half a 95 % t-interval over seeds. Schemes whose intervals overlap, directly or through "
    "others between them, share a rank."
)
_BEST = (
    "Each scheme is ranked at the size of its best mean, which is slightly optimistic: the more sizes "
    "were tried, the more. If the best size is the smallest or the largest, the scheme may do better "
    "beyond it; an isoFLOP suite finds the optimum (docs/isoflop.md)."
)
_SEEDS = (
    "± is half a 95 % t-interval over seeds, and rows whose intervals overlap are not ranked apart: a "
    "rank is one more than the number of rows whose interval lies wholly on the better side."
)


def markdown(board: Leaderboard) -> str:
    """The page."""
    records = [record for entry in board.entries for record in entry.row.records]
    suites = sorted({(record.suite["name"], record.suite["version"]) for record in records})
    named = ", ".join(f"{escaped(name)}, version {version}" for name, version in suites)
    parts = [f"# Suite {named}"]
    for number, entries in enumerate(board.comparisons, start=1):
        if len(board.comparisons) > 1:
            parts.append(f"## Comparison {number}\n\nRanks count within a comparison, not between two.")
        parts += _comparison(board, entries)
    parts += downstream_section(board)
    parts += routing_section(cases_of_board(board))
    parts += ["## Notes", "\n".join(f"- {note}" for note in _notes(board))]
    glossary = [
        (of.name, of.unit, "-" if of.direction == "none" else of.direction, of.kind, of.meaning)
        for of in METRICS.values()
    ]
    heads = ("metric", "unit", "better", "kind", "meaning")
    parts += ["## Metrics", markdown_table(heads, glossary, left=range(5)), _CSV]
    return "\n\n".join(parts) + "\n"


def _comparison(board: Leaderboard, entries: list[Entry]) -> Iterable[str]:
    held, models = entries[0].row.conditions(board.rank_by), [entry.row.model for entry in entries]
    of_several = differing(models)
    model = {name: value for name, value in models[0].items() if name not in of_several}
    corpus = held["corpus"]
    # Equal in all rows; a row that stopped early has none.
    scored = next((e.row for e in entries if e.row.value("unigram_loss")), entries[0].row)
    yield (
        f"Budget {si(held['budget'])}FLOP of training each ({held['budget']}, convention model); "
        f"model: {in_words(model)}; data: {escaped(held['data'].get('source', 'corpus'))}, "
        f"sha256 {escaped(corpus['sha256'])}, {corpus['train_tokens']} training tokens, sequences of "
        f"{held['sequence']}; loss over at most {held['heldout_tokens']} held-out tokens. "
        f"Unigram loss: {metric_text(board, scored, 'unigram_loss', '.4f')} nats/token."
    )
    if of_several:
        yield from size_tables(board, entries)
    else:
        yield _table(board, entries)
    ranked = [entry for entry in entries if entry.rank is not None]
    if not ranked:
        yield "No row could be ranked."
    elif METRICS[board.rank_by].kind == "exact":
        yield f"Ranked by {board.rank_by}, {_EXACT}"
    else:
        one_seed = all(len(entry.row.ok) == 1 for entry in ranked)
        how = _ONE_SEED if one_seed else _SHARED if of_several else _SEEDS
        yield f"Ranked by {board.rank_by}. {how}"
    if any(entry.sizes > 1 for entry in ranked):
        yield _BEST
    remarks = [f"- **{escaped(e.row.label)}**: {escaped(e.note)}" for e in entries if e.note]
    if remarks:
        yield "† Not ranked, or to be read with care:"
        yield "\n".join(remarks)


def _table(board: Leaderboard, entries: list[Entry]) -> str:
    """The table of ``entries``, which have one shape."""
    rows = [entry.row for entry in entries]
    cells: dict[str, list[Any]] = {
        "rank": [f"{entry.rank or '-'}{' †' if entry.note else ''}" for entry in entries],
        "scheme": [row.label for row in rows],
        **metric_columns(board, rows),
        **audit_columns(rows),
    }
    left = [place for place, head in enumerate(cells) if head in ("scheme", "FLOPs", "audit")]
    return markdown_table(list(cells), zip(*cells.values(), strict=True), left=left)


def _notes(board: Leaderboard) -> Iterable[str]:
    rows = [entry.row for entry in board.entries]
    records = [record for row in rows for record in row.records]
    yield _FLOPS
    yield "Held-out loss: under the causal rule. Leaky loss: under the training rule, no result."
    seeds = sorted({record.cell["seed"] for record in records})
    yield f"Seeds: {', '.join(map(str, seeds))}; all figures: leaderboard.csv."
    if differ := sorted(_different_settings(rows)):
        yield f"Settings differ: {', '.join(map(escaped, differ))}; see leaderboard.csv."
    if board.machine_differences:
        different = "; ".join(map(escaped, board.machine_differences))
        yield f"Times and memory are left out, since machines that differ are not compared: {different}."
    else:
        yield _TIMES
    machines = {machine_in_words(record.environment, MACHINE) for record in records if record.metrics}
    yield from (f"Machine: {escaped(machine)}." for machine in sorted(machines))
    yield from (f"Code: {escaped(code)}." for code in sorted({made_by(one.code) for one in records}))
    routers = [record.cell["router"] for record in records]
    plugins = {(one["name"], one["plugin_sha256"]) for one in routers if one["plugin_sha256"]}
    for name, sha in sorted(plugins):
        yield f"Plugin: {escaped(name)}, a file with sha256 {escaped(sha)}."


def _different_settings(rows: list[Row]) -> set[str]:
    """The settings of training and measuring in which ``rows`` differ."""
    cells = [row.cell["train"] | row.cell["measure"] for row in rows]
    names = {name for cell in cells for name in cell} - _CONDITIONS
    return {name for name in names if len({str(cell.get(name)) for cell in cells}) > 1}
