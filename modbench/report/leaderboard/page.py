"""leaderboard.md: each scheme's row with its rank, figures, further columns and notes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from modbench.analysis.idle_layers import LEAST_ADDED
from modbench.errors import several
from modbench.records.metrics import METRICS
from modbench.report.downstream.page import downstream_section
from modbench.report.leaderboard.board import Entry, Leaderboard
from modbench.report.leaderboard.board_tables import (
    best_entries,
    first_table,
    layer_table,
    more_table,
    size_table,
)
from modbench.report.leaderboard.columns import FIRST, MORE, column_table
from modbench.report.leaderboard.metric_cells import metric_text, ranking_column, si
from modbench.report.leaderboard.row import Row
from modbench.report.leaderboard.scheme import differing
from modbench.report.leaderboard.titles import comparison_titles
from modbench.report.sections import Heading, Items, Page, Part, in_words, suite_page
from modbench.report.table import Table, escaped

#: Settings that the page states above the table of each comparison.
_CONDITIONS = {"budgets", "sequence", "heldout_tokens"}

_FLOPS = (
    "FLOPs: convention `model` (2 per multiply-accumulate; causal attention costs its triangle; logits "
    "and routers counted, the embedding look-up free; backward dX and dW of each matmul where needed)."
)
_CSV = (
    "leaderboard.csv has all metrics at full precision; `modbench list metrics` explains them. One of "
    "kind exact is one column (`low..high` if seeds disagree); quality is the mean over seeds, with "
    "`_low` and `_high` of its 95 % t-interval (empty for one seed); timed is `_median`, `_iqr`, `_n`, "
    "`_stable` and `_loaded`, over all processes that timed the scheme (`_iqr` and `_stable` are empty "
    "where there is one value). A text that a spreadsheet would take for a formula has an "
    "apostrophe in front."
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
_LAYERS = (
    "Routed layers: *adds* is the mean norm of a layer's update over the norm of the residual stream, "
    f"for the held-out tokens that it selects; below {LEAST_ADDED:g} is next to nothing. *gate* is "
    "the mean magnitude of their gate."
)
_BEST = (
    "Each scheme is ranked at the size of its best mean, which is slightly optimistic: the more sizes "
    "were tried, the more. If the best size is the smallest or the largest, the scheme may do better "
    "beyond it; an isoFLOP suite finds the optimum (docs/isoflop.md)."
)


def leaderboard_page(board: Leaderboard, drawn: Collection[str] = ()) -> Page:
    """The page; ``drawn``: names of the files with figures."""
    records = [record for entry in board.entries for record in entry.row.records]
    several_tables = len(board.comparisons) > 1
    tables: list[Part] = []
    details: list[Part] = []
    for title, entries in zip(comparison_titles(board.comparisons), board.comparisons, strict=True):
        tables += [Heading(title)] if several_tables else []
        tables += [_compared(entries), *_ranking(board, entries)]
        details += [Heading(title, 3)] if several_tables else []
        details += [_setting(board, entries), more_table(board, entries)]
        if layers := layer_table(entries):
            details += [_LAYERS, layers]
        if sizes := size_table(board, entries):
            details += ["The sizes of each scheme:", sizes]
    if several_tables:
        tables.insert(0, "Ranks count within a table, not between two.")
    shown = {heading for part in details if isinstance(part, Table) for heading in part.headings}
    details.append(column_table(column for column in MORE if column.heading in shown))
    return suite_page(
        records,
        tables,
        downstream=downstream_section(board),
        drawn=drawn,
        columns=dict.fromkeys((*FIRST[:2], ranking_column(board), *FIRST[2:])),
        manual="docs/reading_the_table.md",
        details=details,
        notes=_notes(board),
    )


def _compared(entries: Sequence[Entry]) -> str:
    """The sentence on what ``entries`` compare."""
    best, row = best_entries(entries), entries[0].row
    seeds = {record.seed for entry in entries for record in entry.row.records}
    return (
        f"{several(len(best), 'scheme')} at equal compute: each is trained with "
        f"{si(row.budget, 3)}FLOP on {escaped(row.run.data.source)}, "
        f"{several(len(seeds), 'seed')}."
    )


def _ranking(board: Leaderboard, entries: Sequence[Entry]) -> Iterable[Part]:
    """The first table of ``entries``, how it is ranked, and remarks on its rows."""
    yield first_table(board, entries)
    ranked = [entry for entry in entries if entry.rank is not None]
    by = ranking_column(board).heading.partition(" (")[0]
    if not ranked:
        yield "No row could be ranked."
    elif METRICS[board.rank_by].kind == "exact":
        yield f"Ranked by {by}, {_EXACT}"
    else:
        one_seed = all(len(entry.row.ok) == 1 for entry in ranked)
        yield f"Ranked by {by}. {_ONE_SEED if one_seed else _SHARED}"
    if any(entry.sizes > 1 for entry in ranked):
        yield _BEST
    remarks = [f"**{escaped(e.row.label)}**: {escaped(e.note)}" for e in entries if e.note]
    if remarks:
        yield "† Not ranked, or to be read with care:"
        yield Items(remarks)


def _setting(board: Leaderboard, entries: Sequence[Entry]) -> str:
    """Budget, model and text of ``entries``: what is equal in all rows."""
    held, models = entries[0].row.conditions(board.rank_by), [entry.row.model for entry in entries]
    of_several = differing(models)
    model = {name: value for name, value in models[0].items() if name not in of_several}
    corpus, limit = held["corpus"], held["heldout_tokens"]
    scored_on = f"at most {several(limit, 'held-out token', ',')}" if limit else "all held-out tokens"
    # Equal in all rows; a row that stopped early has none.
    scored = next((e.row for e in entries if e.row.value("unigram_loss")), entries[0].row)
    return (
        f"Budget {si(held['budget'])}FLOP of training each ({held['budget']}, convention model); "
        f"model: {in_words(model)}; data: {escaped(held['data'].get('source', 'corpus'))}, "
        f"sha256 {escaped(corpus['sha256'])}, {several(corpus['train_tokens'], 'training token', ',')}, "
        f"sequences of {held['sequence']}; loss over {scored_on}. "
        f"Unigram loss: {metric_text(board, scored, 'unigram_loss', '.4f')} nats/token."
    )


def _notes(board: Leaderboard) -> Iterable[str]:
    rows = [entry.row for entry in board.entries]
    yield _FLOPS
    yield _CSV
    seeds = sorted({record.seed for row in rows for record in row.records})
    yield f"Seeds: {', '.join(map(str, seeds))}."
    if differ := sorted(_different_settings(rows)):
        yield f"Settings differ: {', '.join(map(escaped, differ))}; see leaderboard.csv."
    if any(row.run.schedule.shares_trunk for row in rows):
        yield (
            "Rows of one scheme at several budgets share a trunk (schedule trapezoid): each seed is one "
            "run with a decay for each budget, so that their losses are not independent."
        )
    if any(row.times for row in rows):
        yield "Times and memory: of the newest session of `modbench time`; timings.md has its machine."


def _different_settings(rows: list[Row]) -> set[str]:
    """The settings of training and measuring in which ``rows`` differ."""
    stated = [row.first.record.run for row in rows]
    settings = [
        of["train"] | of["schedule"] | row.settings.get("heldout", {})
        for of, row in zip(stated, rows, strict=True)
    ]
    scored = [tasks for row in rows if (tasks := row.settings.get("downstream"))]
    of_tasks = [
        {f"downstream_{name}": value for task in tasks.values() for name, value in task.items()}
        for tasks in scored
    ]
    return (_differing(settings) | _differing(of_tasks)) - _CONDITIONS - {"downstream_task"}


def _differing(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    names = {name for of in settings for name in of}
    return {name for name in names if len({str(of.get(name)) for of in settings}) > 1}
