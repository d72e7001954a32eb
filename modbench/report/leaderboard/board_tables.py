"""Tables of one comparison of the leaderboard: its rows, their pairs, and more columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from modbench.report.frame import differing, plain_records
from modbench.report.leaderboard.board import TO_BEST, TO_DENSE, Board
from modbench.report.leaderboard.metric_cells import (
    difference_text,
    metric_columns,
    pair_table,
    stated_cells,
)
from modbench.report.leaderboard.rows import Row, shape_name
from modbench.report.table import Table

_LEFT = ("group", "scheme", "size", "FLOPs", "audit")
#: Headings of columns of metrics, with the cells' format (`metric_text`); docs/columns.md explains them.
_LOSS = {"validation loss (nats/token)": "{heldout_loss:.3f}"}
_COSTS = {
    "realised forward FLOP/token": "{forward_flops_per_token_realised:si3}",
    "training tokens": "{train_tokens:,d}",
    "parameters, active / all": "{active_parameters:si3} / {parameters:si3}",
    "KV cache, share of dense": "{kv_cache_share:.3f}",
}
_MORE = {
    "bits/byte": "{heldout_bits_per_byte:.3f}",
    "leaky loss (nats/token)": "{heldout_loss_leaky:.3f}",
    "leak (nats/token)": "{leak:.4f}",
    "cloze accuracy (untrained, chance)": (
        "{modbench_cloze:.3f} ({modbench_cloze_untrained:.3f}, {modbench_cloze_chance:.3f})"
    ),
    "nominal forward FLOP/token": "{forward_flops_per_token:si}",
    "training FLOP spent": "{train_flops:si}",
    "steps": "{train_steps:,d}",
    "training step (ms), median ± IQR": "{train_step_seconds:ms}",
    "peak memory (MB)": "{peak_memory_bytes:MB}",
    "KV cache (B/token)": "{kv_cache_bytes_per_token:,.0f}",
}


def first_table(board: Board, rows: Sequence[Row]) -> Table:
    """The first table; without groups if no row has one."""
    told = any(board.group(row) for row in rows)
    cells: dict[str, Sequence[Any]] = {
        "group": [_group(board, row, told) for row in rows],
        "scheme": [row["_pair_name"] for row in rows],
    }
    cells |= metric_columns(rows, _LOSS)
    if board.pairs_of(TO_DENSE):
        minus = [board.minus(row, TO_DENSE) for row in rows]
        cells["minus dense (nats/token)"] = [difference_text(pair) if pair else None for pair in minus]
    cells |= metric_columns(rows, _COSTS) | {"audit": [row["audit"] for row in rows]}
    table = _table({name: of for name, of in cells.items() if name != "group" or {*of} != {"-"}})
    return table.about("Schemes, ordered by validation loss")


def _group(board: Board, row: Row, told: bool) -> str:
    """The group of a row; ``told``: any row has one, so that a ranked one without is worse."""
    group = "not ranked" if row["_unranked"] else board.group(row) or "worse than best" * told
    return f"{group}{' †' if row['note'] else ''}".strip() or "-"


def stated_table(board: Board, rows: Sequence[Row]) -> Table | None:
    """The pairs of a comparison that the suite states; None if it states none."""
    if not (stated := board.stated(rows[0]["comparison"])):
        return None
    lines = [{**stated_cells(pair), "blocks": _blocks(pair)} for pair in stated]
    return Table.of(lines, left=(0, 1, 2, 6)).about("Comparisons that the suite states")


def _blocks(pair: Mapping[str, Any]) -> str:
    """The number of blocks of a pair that the suite states, and of those that are special."""
    words = [f"{pair[kind]} {kind}" for kind in ("split", "lost") if pair[kind]]
    return f"{pair['pairs'] or 0}" + (f" ({', '.join(words)})" if words else "")


def difference_table(board: Board, rows: Sequence[Row]) -> Table | None:
    """The differences between ranked rows of a comparison: those to the dense row and all others; None
    without repeated runs, or if the suite states which pairs are compared."""
    of = board.pairs
    if board.stated(rows[0]["comparison"]):
        return None
    of = of[(of["comparison"] == rows[0]["comparison"]) & of["p"].notna()]
    pairs = plain_records(of[of["family"].fillna("") != TO_BEST])
    table = pair_table((), pairs)
    return table.about("Differences between rows") if pairs else None


def more_table(rows: Sequence[Row]) -> Table:
    """Further columns of the same rows, without those in which no row has a value."""
    is_one_shape = not differing([row["_model"] for row in rows])
    sizes = ["-" if is_one_shape else row["shape"] or shape_name(row["_model"]) for row in rows]
    columns = {"size": sizes, **metric_columns(rows, _MORE)}
    columns["FLOPs"] = [row["flops_source"] or "-" for row in rows]
    shown = {heading: cells for heading, cells in columns.items() if {*cells} != {"-"}}
    table = _table({"scheme": [row["_pair_name"] for row in rows], **shown})
    return table.about("Further metrics")


def layer_table(rows: Sequence[Row]) -> Table | None:
    """Updates and gates of the routed layers of each row, means over seeds; None if no run has them."""
    layers = [name for name in rows[0] if "_layer_" in name]
    rows = [row for row in rows if any(row[name] is not None for name in layers)]
    columns: dict[str, Sequence[Any]] = {"scheme": [row["_pair_name"] for row in rows]}
    for name in layers:
        cells = ["-" if row[name] is None else f"{row[name]:.2g}" for row in rows]
        part, _, layer = name.partition("_layer_")
        if {*cells} - {"-"}:
            columns[f"layer {layer} {'adds' if part == 'added' else 'gate'}"] = cells
    return _table(columns).about("Updates and gates of routed layers") if rows else None


def _table(columns: Mapping[str, Sequence[Any]]) -> Table:
    left = [number for number, heading in enumerate(columns) if heading in _LEFT]
    return Table([*columns], [*zip(*columns.values(), strict=True)], left)
