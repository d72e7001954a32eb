"""The section of a page on downstream tasks: a table for each group of tasks, and paired
differences on items. N items."""

from collections.abc import Iterator, Sequence

import numpy as np

from modbench.analysis.items import paired_bootstrap
from modbench.analysis.noise import Array
from modbench.report.downstream.scores import (
    BITS,
    MARGIN,
    comparable,
    compute_of,
    entries_of,
    leak_of,
    metrics_of,
    score_of,
    shift_of,
    tasks_of,
)
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.entry import Entry
from modbench.report.leaderboard.metric_cells import si
from modbench.report.leaderboard.row import Row
from modbench.report.leaderboard.titles import comparison_titles
from modbench.report.sections import Heading, Part, Picture
from modbench.report.table import Table, escaped

_NAMES = {BITS: "bits/byte of the right answer", MARGIN: "margin of the right answer (nats)"}
#: Kinds of routed layers, and the share of tokens that they process.
_KINDS = {"depth": "tokens selected by depth-routed layers", "experts": "tokens with an expert"}
_NOTE = (
    "Scored by lm-eval under the causal rule; in parentheses, the same model before training. ± is "
    "half a 95 % interval: over seeds, or with one seed over items (1.96 standard errors). Chance: the"
    " level of a scorer that ignores the context, where it is known. Bits per byte and margin are "
    "means over items; the margin is over the best wrong answer. FLOPs (convention `model`) and "
    "seconds are per evaluated token; those of a group are of all its tasks. Tokens selected by depth-"
    "routed layers, tokens with an expert: the share while scoring, averaged over the layers of that "
    "kind; records don't state it by kind for a scheme that has both. Batch shift: largest difference "
    "of a log-probability between batch sizes 1, 7 and 32 on the first items. All metrics: "
    "leaderboard.csv."
)
_CAPTION = (
    "Scores against realised FLOPs per evaluated token, at the largest budget: a marker per scheme, "
    "hollow if it is not ranked; bars are 95 % intervals. Dotted: chance; where it lies far from all "
    "scores, its number stands at the edge."
)


def downstream_section(board: Leaderboard) -> list[Part]:
    """The section; empty if nothing was scored."""
    parts: list[Part] = []
    several = len(board.comparisons) > 1
    titles = comparison_titles(board.comparisons)
    for entries, title in zip(board.comparisons, titles, strict=True):
        if shown := scored_entries(entries):
            parts += [Heading(title, 3)] if several else []
            parts += [*_tables(shown), _leaks(shown), *comparison_tables(shown)]
    return [Heading("Downstream tasks"), *parts, _NOTE, *_picture(board)] if parts else []


def _picture(board: Leaderboard) -> list[Part]:
    rows = [entry.row for entries in board.comparisons for entry in scored_entries(entries)]
    picture = Picture("scores against inference FLOPs", "downstream.svg")
    return [_CAPTION, picture] if any(map(has_flops, rows)) else []


def has_flops(row: Row) -> bool:
    """Return True if the FLOPs of scoring any task are known, which the figure needs."""
    return any(compute_of(row, task, "realised_flops_per_token") for task in tasks_of([row]))


def scored_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Those of ``entries`` that were scored on any task; of isoFLOP suites, each scheme at the size and
    learning rate of its lowest held-out loss."""
    scored = [entry for entry in entries if tasks_of([entry.row])]
    if not any(record.isoflop for entry in scored for record in entry.row.records):
        return scored
    best: dict[str, Entry] = {}
    for entry in sorted(scored, key=_loss):
        best.setdefault(entry.scheme, entry)
    return [best[scheme] for scheme in sorted(best)]


def _loss(entry: Entry) -> tuple[float, str]:
    loss = entry.row.value("heldout_loss")
    return loss.center if loss else float("inf"), entry.row.label


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


def _tables(entries: Sequence[Entry]) -> Iterator[Part]:
    """A table per group: a line for each task and metric, a column for each scheme."""
    rows = [entry.row for entry in entries]
    names = [entry.row.label + (" †" if entry.unranked else "") for entry in entries]
    headings = ("task", "metric", "items", "few-shot", "version", "chance", *names)
    for group, tasks in groups_of(rows).items():
        if group:
            yield f"Group {escaped(group)}:"
        lines: list[Sequence[str]] = []
        for number, task in enumerate(tasks):
            lines += _lines(rows, task, compute=not group or number == len(tasks) - 1)
        yield Table(headings, lines, left=(0, 1), caption=f"Scores{f' of {group}' if group else ''}")
        if differ := [task for task in tasks if not comparable(rows, task)]:
            yield (
                f"Not comparable, since items, examples or versions differ between columns: "
                f"{', '.join(map(escaped, differ))}."
            )


def _lines(rows: Sequence[Row], task: str, *, compute: bool) -> Iterator[Sequence[str]]:
    main, *others = metrics_of(rows, task)
    entry = next(entry for row in rows for entry in entries_of(row, task))
    version = (entry.version or "-") + ", partial" * (entry.missing is not None)
    about = (f"{entry.items:,}", str(entry.few_shot), version)
    for metric in (main, *(name for name in others if name in _NAMES)):
        scores = [score_of(row, task, metric) for row in rows]
        levels = dict.fromkeys(_number(s.chance) for s in scores if s and s.chance is not None)
        cells = []
        for score in scores:
            text = "-" if score is None else _number(score.value.center)
            if score and score.value.spread is not None:
                text += f" ± {_number(score.value.spread)}"
            if score and score.untrained is not None:
                text += f" ({_number(score.untrained)})"
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
    both = [compute_of(row, task, f"{name}_flops_per_token") for name in ("nominal", "realised")]
    return " / ".join("-" if flops is None else si(flops) for flops in both)


def _microseconds(row: Row, task: str) -> str:
    seconds = compute_of(row, task, "seconds_per_token")
    return "-" if seconds is None else f"{seconds * 1e6:.1f}"


def _routed(rows: Sequence[Row], task: str) -> Iterator[tuple[str, list[str]]]:
    """A line for each kind of routed layer: the share of tokens that it processes, of the rows whose
    routed layers are all of that kind. The mean over both kinds has no meaning."""
    for kind, name in (
        ("depth", "tokens selected by depth-routed layers"),
        ("experts", "tokens with an expert"),
    ):
        of_rows = [
            compute_of(row, task, "share_routed") if _kinds(row) == {kind} else None for row in rows
        ]
        if any(share is not None for share in of_rows):
            yield name, ["-" if share is None else f"{share:.1%}" for share in of_rows]


def _kinds(row: Row) -> set[str]:
    """The kinds of routed layers of ``row``, by the record of its routing: depth, experts."""
    routing = row.ok[0].routing if row.ok else None
    return {kind for kind in _KINDS if routing and getattr(routing.causal, kind)}


def _shift(row: Row, task: str) -> str:
    shift = shift_of(row, task)
    return f"{shift['nats']:.1e}, {shift['flipped']} of {shift['items']}" if shift else "-"


def _leaks(entries: Sequence[Entry]) -> str:
    """A sentence on the leak audits."""
    leaks = {entry.row.label: leak_of(entry.row) for entry in entries}
    others = [f"{escaped(label)} {escaped(leak)}" for label, leak in leaks.items() if leak != "passed"]
    if not others:
        return "Leak audit (probes 1 and 2, also on the trained weights): passed by all."
    return f"Leak audit (probes 1 and 2): {'; '.join(others)}; passed by the others."


#: Router of the scheme that others are compared with, if it was scored.
DENSE = "vanilla"
#: Scores of single items that are compared, and their names in the table.
_BY_ITEM = {"correct": "accuracy", "bits_per_byte": "bits/byte of the right answer"}
_DIFFERENCES = (
    "on the same items (accuracy: higher is better; bits per byte: lower), with the 95 % interval of a "
    "paired bootstrap over items; * where it excludes 0. Scores of an item are means over seeds; the "
    "interval leaves out the noise between seeds."
)


def comparison_tables(entries: Sequence[Entry]) -> Iterator[str | Table]:
    """The tables and paragraphs on schemes compared item by item; none for fewer than two schemes."""
    if len(entries) < 2:
        return
    reference = _reference(entries)
    others = [entry for entry in entries if entry is not reference]
    rows = [entry.row for entry in entries]
    lines = [
        (task, name, *cells)
        for task in tasks_of(rows)
        if comparable(rows, task)
        for column, name in _BY_ITEM.items()
        if any(cells := [_difference(entry.row, reference.row, task, column) for entry in others])
    ]
    if lines:
        yield f"Difference from {escaped(reference.row.label)} {_DIFFERENCES}"
        headings = ("task", "score", *(entry.row.label for entry in others))
        yield Table(headings, [[cell or "-" for cell in line] for line in lines], left=(0, 1))


def _reference(entries: Sequence[Entry]) -> Entry:
    """The dense scheme; without one, the first of the ranked ones."""
    dense = [entry for entry in entries if entry.row.run.router.name == DENSE]
    if dense:
        return min(dense, key=lambda entry: entry.row.label)
    return min(entries, key=lambda entry: (entry.position is None, entry.position or 0))


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
    mark = "" if low <= 0 <= high else "*"
    return f"{paired.difference:z.3f}{mark} ({low:z.3f} to {high:z.3f})"


def _items_of(row: Row, task: str, column: str) -> Array | None:
    """The scores (N,) of single items, the mean over seeds; None if a seed has none."""
    seeds = [entry.by_item for entry in entries_of(row, task)]
    columns = [np.array(getattr(items, column), dtype=np.float64) for items in seeds if items]
    if not columns or len(columns) < len(seeds) or len({*map(len, columns)}) > 1:
        return None
    mean_N: Array = np.mean(columns, axis=0)
    return mean_N
