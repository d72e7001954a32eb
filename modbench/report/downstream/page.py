"""The section of a page on downstream tasks: a table for each group of tasks, and paired
differences on items. N items."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from modbench.analysis.items import paired_bootstrap
from modbench.analysis.noise import Array
from modbench.report.downstream.scores import comparable, entries_of, metrics_of, tasks_of
from modbench.report.frame import BITS, MARGIN
from modbench.report.leaderboard.board import DENSE, Board, comparison_titles
from modbench.report.leaderboard.metric_cells import si
from modbench.report.leaderboard.rows import Row, spread
from modbench.report.leaderboard.stated import is_stated
from modbench.report.table import Table

_NAMES = {BITS: "bits/byte of the right answer", MARGIN: "margin of the right answer (nats)"}
#: Kinds of routed layers, and the share of tokens that they process.
#: Values of the template `pages/downstream.md.j2`.
Section = dict[str, Any]
_KINDS = {"depth": "tokens selected by depth-routed layers", "experts": "tokens with an expert"}


def downstream_section(board: Board) -> Section:
    """The section on downstream tasks; empty if nothing was scored."""
    titles = comparison_titles(board.comparisons)
    compared = [
        {
            "title": title if len(titles) > 1 else "",
            "groups": [*_tables(shown)],
            "leaks": [(r["_name"], r["leak_audit"]) for r in shown if r["leak_audit"] != "passed"],
            "reference": _reference(shown)["_name"],
            "differences": comparison_table(shown),
        }
        for rows, title in zip(board.comparisons, titles, strict=True)
        if (shown := scored_rows(rows))
    ]
    return {"compared": compared}


def scored_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of ``rows`` that were scored on any task; of isoFLOP suites, each scheme at the size and
    learning rate of its lowest held-out loss."""
    scored = [row for row in rows if tasks_of([row])]
    if not any(result.isoflop for row in scored for result in row["_results"]):
        return scored
    best: dict[str, Row] = {}
    for row in sorted(scored, key=_loss):
        best.setdefault(row["label"], row)
    return [best[scheme] for scheme in sorted(best)]


def _loss(row: Row) -> tuple[float, str]:
    loss = row["heldout_loss"]
    return float("inf") if loss is None else loss, row["_name"]


def groups_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Tasks of ``rows`` by group or tag; tasks that the suite names one by one are under an empty
    name."""
    groups: dict[str, list[str]] = {"": []}
    tasks = tasks_of(rows)
    group = {t: next(e.part_of for r in rows for e in entries_of(r, t)) for t in tasks}
    for task in tasks:
        alone = list(group.values()).count(group[task]) == 1 and task == group[task]
        groups.setdefault("" if alone else group[task], []).append(task)
    return {name: tasks for name, tasks in groups.items() if tasks}


def _tables(rows: Sequence[Row]) -> Iterator[Section]:
    """A table per group: a line for each task and metric, a column for each scheme; and the tasks whose
    columns can't be compared."""
    names = [row["_name"] + (" †" if row["_unranked"] else "") for row in rows]
    headings = ("task", "metric", "items", "few-shot", "version", "chance", *names)
    for group, tasks in groups_of(rows).items():
        lines: list[Sequence[str]] = []
        for number, task in enumerate(tasks):
            lines += _lines(rows, task, compute=not group or number == len(tasks) - 1)
        table = Table(headings, lines, left=(0, 1), caption=f"Scores{f' of {group}' if group else ''}")
        different = [task for task in tasks if not comparable(rows, task)]
        yield {"name": group, "table": table, "incomparable": different}


def _lines(rows: Sequence[Row], task: str, *, compute: bool) -> Iterator[Sequence[str]]:
    main, *others = metrics_of(rows, task)
    entry = next(entry for row in rows for entry in entries_of(row, task))
    version = (entry.version or "-") + ", partial" * (entry.missing is not None)
    about = (f"{entry.items:,}", str(entry.few_shot), version)
    for metric in (main, *(name for name in others if name in _NAMES)):
        name = f"{task}:{metric}"
        chances = (row.get(f"{name}_chance") for row in rows)
        levels = dict.fromkeys(_number(chance) for chance in chances if chance is not None)
        cells = []
        for row in rows:
            half, untrained = spread(row, name), row[f"{name}_untrained"]
            text = "-" if row[name] is None else _number(row[name])
            text += "" if half is None else f" ± {_number(half)}"
            text += "" if untrained is None else f" ({_number(untrained)})"
            cells.append(text)
        yield task, _NAMES.get(metric, metric), *about, ", ".join(levels) or "-", *cells
    if compute:
        for name, texts in (
            ("FLOP/token, nominal / realised", [_flops(row, task) for row in rows]),
            ("µs/token", [_microseconds(row, task) for row in rows]),
            *_routed(rows, task),
            ("batch shift (nats), answers changed", [_shift(row, task) for row in rows]),
        ):
            yield task, name, *about, "-", *texts


def _number(value: float) -> str:
    return f"{value:z.3f}" if abs(value) < 1e4 else f"{value:.3g}"


def _flops(row: Row, task: str) -> str:
    both = [row[f"{task}:{name}_flops_per_token"] for name in ("nominal", "realised")]
    return " / ".join("-" if flops is None else si(flops) for flops in both)


def _microseconds(row: Row, task: str) -> str:
    seconds = row[f"{task}:seconds_per_token"]
    return "-" if seconds is None else f"{seconds * 1e6:.1f}"


def _routed(rows: Sequence[Row], task: str) -> Iterator[tuple[str, list[str]]]:
    """A line for each kind of routed layer: the share of tokens that it processes, of the rows whose
    routed layers are all of that kind. The mean over both kinds has no meaning."""
    for kind, name in (
        ("depth", "tokens selected by depth-routed layers"),
        ("experts", "tokens with an expert"),
    ):
        of_rows = [row[f"{task}:share_routed"] if _kinds(row) == {kind} else None for row in rows]
        if any(share is not None for share in of_rows):
            yield name, ["-" if share is None else f"{share:.1%}" for share in of_rows]


def _kinds(row: Row) -> set[str]:
    """The kinds of routed layers of ``row``, by the record of its routing: depth, experts."""
    routing = row["_ok"][0].routing if row["_ok"] else None
    return {kind for kind in _KINDS if routing and getattr(routing.causal, kind)}


def _shift(row: Row, task: str) -> str:
    nats, flipped, items = (row[f"{task}:batch_shift_{name}"] for name in ("nats", "flipped", "items"))
    return "-" if nats is None else f"{nats:.1e}, {flipped} of {items}"


#: Scores of single items that are compared, and their names in the table.
_BY_ITEM = {"correct": "accuracy", "bits_per_byte": "bits/byte of the right answer"}


def comparison_table(rows: Sequence[Row]) -> Table | None:
    """The table of schemes compared item by item; None for fewer than two schemes."""
    if len(rows) < 2:
        return None
    reference = _reference(rows)
    others = [row for row in rows if row is not reference]
    lines = [
        (task, name, *cells)
        for task in tasks_of(rows)
        if comparable(rows, task)
        for column, name in _BY_ITEM.items()
        if any(cells := [_difference(row, reference, task, column) for row in others])
    ]
    headings = ("task", "score", *(row["_name"] for row in others))
    return Table(headings, [[cell or "-" for cell in line] for line in lines], (0, 1)) if lines else None


def _reference(rows: Sequence[Row]) -> Row:
    """The dense scheme, that of a pair which the suite states before others; without one, the first of
    the ranked ones."""
    dense = [row for row in rows if row["router"] == DENSE]
    if dense:
        return min(dense, key=lambda row: (not is_stated(row), str(row["_name"])))
    return min(rows, key=lambda row: (row["position"] is None, row["position"] or 0))


def _difference(row: Row, reference: Row, task: str, column: str) -> str:
    """``row`` minus ``reference`` with its interval; empty if their items can't be compared."""
    scores_N = _items_of(row, task, column)
    others_N = _items_of(reference, task, column)
    if scores_N is None or others_N is None or len(scores_N) != len(others_N):
        return ""
    if np.isnan(scores_N - others_N).all():
        return ""
    paired = paired_bootstrap(scores_N, others_N)
    low, high = paired.interval
    return f"{paired.difference:z.3f} ({low:z.3f} to {high:z.3f})"


def _items_of(row: Row, task: str, column: str) -> Array | None:
    """The scores (N,) of single items, the mean over seeds; None if a seed has none."""
    seeds = [entry.by_item for entry in entries_of(row, task)]
    columns = [np.array(getattr(items, column), dtype=np.float64) for items in seeds if items]
    if not columns or len(columns) < len(seeds) or len({*map(len, columns)}) > 1:
        return None
    mean_N: Array = np.mean(columns, axis=0)
    return mean_N
