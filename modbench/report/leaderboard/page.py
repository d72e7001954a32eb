"""leaderboard.md: each scheme's row with its figures and comparisons, further columns and notes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from modbench.analysis.idle_layers import LEAST_ADDED
from modbench.errors import several
from modbench.records.metrics import METRICS
from modbench.report.downstream.page import downstream_section
from modbench.report.frame import differing, plain_records
from modbench.report.leaderboard.board import (
    DENSE,
    MOST_ROWS,
    TO_BEST,
    TO_DENSE,
    Board,
    best_rows,
    comparison_titles,
    dense_row,
)
from modbench.report.leaderboard.board_tables import (
    difference_table,
    first_table,
    layer_table,
    more_table,
    size_table,
)
from modbench.report.leaderboard.columns import MORE, Column, column_table
from modbench.report.leaderboard.metric_cells import (
    PROCESSORS,
    family_text,
    first_columns,
    interim_text,
    metric_text,
    ranking_column,
    si,
    untold_text,
)
from modbench.report.leaderboard.rows import Row, center, conditions
from modbench.report.sections import Heading, Items, Page, Part, in_words, suite_page
from modbench.report.table import Table, escaped

#: Settings that the page states above the table of each comparison.
_CONDITIONS = {"budgets", "sequence", "heldout_tokens"}

_FLOPS = (
    "FLOPs: convention `model` (2 per multiply-accumulate; causal attention costs its triangle; logits "
    "and routers counted, the embedding look-up free; backward dX and dW of each matmul where needed)."
)
_CSV = (
    "leaderboard.csv has all metrics with nine digits; `modbench list metrics` explains them. One of "
    "kind exact is one column (`low..high` if seeds disagree); quality is the mean over seeds, with "
    "`_low` and `_high` of its 95 % t-interval (empty for one seed); timed is `_median`, `_iqr`, `_n`, "
    "`_stable` and `_loaded`, over all processes that timed the scheme (`_iqr` and `_stable` are empty "
    "where there is one value). A text that a spreadsheet would take for a formula has an "
    "apostrophe in front."
)
_EXACT = "which is exact: it has no noise, and a difference needs no test."
_ONE_SEED = (
    "One seed gives no interval: no run was repeated, so the noise between seeds is not known. The "
    "order of the rows is no claim that one scheme is better than another."
)
_SPREAD = "± is half a 95 % t-interval over the seeds of a row."
_GROUPS = (
    "*Best* is the first row; *not separable* from it are the rows whose difference to it has a p above "
    "0.05, adjusted by Holm's method for {}."
)
_PAIRS = (
    "Differences of ranked rows over the seeds that both have, with the two-sided p of each; pairs that "
    "belong to no family of comparisons have neither adjusted p nor verdict. "
)
_MANY = (
    f"With more than {MOST_ROWS} rows, only the differences to the dense row are listed; `modbench "
    "compare` compares any two. "
)
_LAYERS = (
    "Routed layers: *adds* is the mean norm of a layer's update over the norm of the residual stream, "
    f"for the held-out tokens that it selects; below {LEAST_ADDED:g} is next to nothing. *gate* is "
    "the mean magnitude of their gate."
)
_BEST = (
    "Each scheme is ranked at the size of its best mean, which is slightly optimistic: the more sizes "
    "were tried, the more. If the best size is the smallest or the largest, the scheme may do better "
    "beyond it; an isoFLOP suite finds the optimum (`modbench docs isoflop`)."
)


def leaderboard_page(board: Board, drawn: Collection[str] = ()) -> Page:
    """The page; ``drawn``: names of the files with figures."""
    several_tables = _has_several_tables(board)
    tables: list[Part] = []
    details: list[Part] = []
    for title, rows in zip(comparison_titles(board.comparisons), board.comparisons, strict=True):
        tables += [Heading(title)] if several_tables else []
        tables += [_compared(rows), *_ranking(board, rows)]
        details += [Heading(title, 3)] if several_tables else []
        details += [_setting(board, rows), more_table(rows)]
        if pairs := difference_table(board, rows):
            details += [_pairs(board, rows), pairs]
        if layers := layer_table(rows):
            details += [_LAYERS, layers]
        if sizes := size_table(board, rows):
            details += ["The sizes of each scheme:", sizes]
    if board.rows and (interim := interim_text(board.rows[0]["_first"].suite)):
        tables.insert(0, interim)
    if several_tables:
        tables.insert(0, "Rows are compared within a table, not between two.")
    details.append(column_table(_shown(MORE, details)))
    return suite_page(
        [result for row in board.rows for result in row["_results"]],
        tables,
        downstream=downstream_section(board),
        drawn=drawn,
        columns=_shown(first_columns(board), tables),
        manual="reading_the_table",
        details=details,
        notes=_notes(board),
    )


def _shown(columns: Iterable[Column], parts: Iterable[Part]) -> list[Column]:
    """Those of ``columns`` that a table of ``parts`` has."""
    headings = {heading for part in parts if isinstance(part, Table) for heading in part.headings}
    return [column for column in columns if column.heading in headings]


def _compared(rows: Sequence[Row]) -> str:
    """The sentence on what ``rows`` compare."""
    first = rows[0]["_first"]
    seeds = {result.seed for row in rows for result in row["_results"]}
    return (
        f"{several(len(best_rows(rows)), 'scheme')} at equal compute: each is trained with "
        f"{si(first.budget, 3)}FLOP on {escaped(first.run.data.source)}, "
        f"{several(len(seeds), 'seed')}."
    )


def _ranking(board: Board, rows: Sequence[Row]) -> Iterable[Part]:
    """The first table of ``rows``, how its rows are compared, and remarks on them."""
    yield first_table(board, rows)
    ranked = [row for row in rows if row["position"] is not None]
    by = ranking_column(board).heading.partition(" (")[0]
    if not ranked:
        yield "No row could be ranked."
    elif METRICS[board.rank_by].kind == "exact":
        yield f"Ordered by {by}, {_EXACT}"
    elif board.noise[ranked[0]["comparison"]].pooled is None:
        yield f"Ordered by {by}. {_ONE_SEED}"
    else:
        yield f"Ordered by {by}. {_SPREAD}"
        if any(board.group(row) for row in ranked):
            counted = (
                several(len(board.pairs_of(TO_BEST)), "comparison")
                + " with the first row"
                + " of each table" * _has_several_tables(board)
            )
            yield _GROUPS.format(counted)
    yield from _on_dense(board, rows)
    if any(row["sizes"] > 1 for row in ranked):
        yield _BEST
    remarks = [f"**{escaped(row['_name'])}**: {escaped(row['note'])}" for row in rows if row["note"]]
    if remarks:
        yield "† Not ranked, or to be read with care:"
        yield Items(remarks)


def _has_several_tables(board: Board) -> bool:
    return len(board.comparisons) > 1


def _on_dense(board: Board, rows: Sequence[Row]) -> Iterable[str]:
    """Sentences on the comparison with the dense row, or on why there is none."""
    number, dense = rows[0]["comparison"], dense_row(rows)
    pairs = plain_records(board.pairs[board.pairs["comparison"] == number])
    to_dense = board.pairs_of(TO_DENSE, number)
    if METRICS[board.rank_by].kind == "exact":
        return
    if dense is None:
        yield f"No difference to a dense model: no row has the router `{DENSE}`."
    elif dense["position"] is None:
        yield f"No difference to the dense row {escaped(dense['_name'])}: it is not ranked."
    elif not to_dense and len(rows) > 1 and not dense["_first"].suite["compare"]:
        yield f"No difference to the dense row {escaped(dense['_name'])}: no row has its seeds."
    for family in board.families:
        of = [pair for pair in board.pairs_of(family) if pair["verdict"]]
        if of and family != TO_BEST:
            margin = of[0]["margin"]
            within = f" *Equivalent*: within {margin:g} nats per token." if margin else ""
            yield family_text(family, len(board.pairs_of(family))) + within
    if untold := untold_text(pairs):
        yield untold
    if not all(pair["same_processor"] for pair in pairs):
        yield PROCESSORS


def _pairs(board: Board, rows: Sequence[Row]) -> str:
    """The sentences on the table of differences."""
    noise = board.noise[rows[0]["comparison"]]
    many = sum(row["position"] is not None for row in rows) > MOST_ROWS + 1
    return _PAIRS + _MANY * many + noise.in_words()


def _setting(board: Board, rows: Sequence[Row]) -> str:
    """Budget, model and text of ``rows``: what is equal in all rows."""
    held, models = conditions(rows[0], board.rank_by), [row["_model"] for row in rows]
    of_several = differing(models)
    model = {name: value for name, value in models[0].items() if name not in of_several}
    corpus, limit = held["corpus"], held["heldout_tokens"]
    scored_on = "all held-out tokens"
    if isinstance(limit, int):
        scored_on = f"at most {several(limit, 'held-out token', ',')}"
    # Equal in all rows; a row that stopped early has none.
    scored = next((row for row in rows if center(row, "unigram_loss")), rows[0])
    return (
        f"Budget {si(held['budget'])}FLOP of training each ({held['budget']}, convention model); "
        f"model: {in_words(model)}; data: {escaped(held['data'].get('source', 'corpus'))}, "
        f"sha256 {escaped(corpus['sha256'])}, {several(corpus['train_tokens'], 'training token', ',')}, "
        f"sequences of {held['sequence']}; loss over {scored_on}. "
        f"Unigram loss: {metric_text(scored, 'unigram_loss', '.4f')} nats/token."
    )


def _notes(board: Board) -> Iterable[str]:
    rows = board.rows
    yield _FLOPS
    yield _CSV
    seeds = sorted({result.seed for row in rows for result in row["_results"]})
    yield f"Seeds: {', '.join(map(str, seeds))}."
    if differ := sorted(_different_settings(rows)):
        yield f"Settings differ: {', '.join(map(escaped, differ))}; see leaderboard.csv."
    if any(row["shares_trunk"] for row in rows):
        yield (
            "Rows of one scheme at several budgets share a trunk (schedule trapezoid): each seed is one "
            "run with a decay for each budget, so that their losses are not independent."
        )
    if any(row["_timed"] for row in rows):
        yield "Times and memory: of the newest session of `modbench time`; timings.md has its machine."


def _different_settings(rows: Sequence[Row]) -> set[str]:
    """The settings of training and measuring in which ``rows`` differ."""
    stated = [row["_first"].record.run for row in rows]
    settings = [
        of["train"] | of["schedule"] | row["_settings"].get("heldout", {})
        for of, row in zip(stated, rows, strict=True)
    ]
    scored = [tasks for row in rows if (tasks := row["_settings"].get("downstream"))]
    of_tasks = [
        {f"downstream_{name}": value for task in tasks.values() for name, value in task.items()}
        for tasks in scored
    ]
    return (_differing(settings) | _differing(of_tasks)) - _CONDITIONS - {"downstream_task"}


def _differing(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    names = {name for of in settings for name in of}
    return {name for name in names if len({str(of.get(name)) for of in settings}) > 1}
