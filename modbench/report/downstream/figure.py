"""Figure of downstream tasks: score and bits per byte of the right answer against inference FLOPs per
evaluated token (realised, convention ``model``), a marker per scheme."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modbench.report.downstream.page import groups_of, has_flops, scored_rows
from modbench.report.downstream.scores import entries_of, metrics_of
from modbench.report.frame import BITS
from modbench.report.leaderboard.board import Board
from modbench.report.leaderboard.rows import Row, spread
from modbench.report.plot_style import (
    DOTTED,
    REFERENCE,
    WIDTH,
    Mark,
    draw_point,
    drawn_files,
    folded,
    handle,
    legend_below,
    marks,
    sheet,
    written_out,
)

#: Largest number of tasks; of a group, itself or its first tasks.
_TASKS = 6
_HEIGHT = 2.6  #: inches of a row
_FLOPS = "realised_flops_per_token"
#: Chance is drawn if it lies within this many ranges of the scores, so that they keep their room.
_CHANCE_WITHIN = 1.0


def downstream_figure(board: Board, look_of: Mapping[str, Mark] | None = None) -> dict[str, bytes]:
    """The figure of the largest budget, by file name; nothing if no task was scored."""
    scored = [scored_rows(rows) for rows in board.comparisons]
    scored = [rows for rows in scored if any(_drawn_tasks(rows))]
    if not scored:
        return {}
    look_of = look_of or marks({row["label"]: row["router"] for row in scored[-1]})
    return drawn_files({"downstream": partial(drawn, scored[-1], look_of)})


def _drawn_tasks(rows: Sequence[Row]) -> list[str]:
    """Tasks with a row of panels: of a group, only itself, where it has a score."""
    rows = [row for row in rows if has_flops(row)]
    tasks_drawn: list[str] = []
    for group, tasks in groups_of(rows).items():
        tasks_drawn += [group] if group in tasks else tasks
    return tasks_drawn[:_TASKS]


def drawn(rows: Sequence[Row], look_of: Mapping[str, Mark]) -> Figure:
    """The figure of ``rows``: a panel per task and metric."""
    shown = panels_of(rows)
    lines = -(-len(shown) // 2)
    figure = sheet(1.5 * WIDTH, _HEIGHT * lines)
    panels = list(figure.subplots(lines, 2, squeeze=False, sharex=True).flat)
    for axes, (task, metric) in zip(panels, shown, strict=False):
        _panel(axes, rows, task, metric, look_of)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    if panels[0].lines:
        panels[0].set_xscale("log")
        written_out(panels[0].xaxis, *panels[0].get_xlim())
    for axes in panels[max(len(shown) - 2, 0) : len(shown)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    budget = rows[0]["budget"]
    figure.suptitle(f"after {budget:.3g} training FLOPs; bars: 95 % intervals", fontsize=11)
    names = {row["label"]: row["label"] + " (not ranked)" * bool(row["_unranked"]) for row in rows}
    legend_below(
        figure,
        {
            folded(name): handle(look_of[scheme], filled=name == scheme, markersize=7)
            for scheme, name in sorted(names.items())
        },
        "FLOPs per evaluated token (realised, convention model)",
    )
    return figure


def panels_of(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Task and metric of each panel: the main metric of each task, and the bits per byte of its answers
    unless that is the same for a task of text, whose metric is bits per byte."""
    shown = []
    for task in _drawn_tasks(rows):
        metrics = metrics_of(rows, task)
        shown.append((task, metrics[0]))
        if BITS in metrics and metrics[0] not in (BITS, "bits_per_byte"):
            shown.append((task, BITS))
    return shown


def _better(rows: Sequence[Row], task: str, metric: str) -> str:
    """The side of ``metric`` that is better; empty if the records don't state it."""
    if metric == BITS:
        return "lower is better"
    entries = [entry for row in rows for entry in entries_of(row, task)]
    scores = [entry.metrics.get(metric) for entry in entries]
    side = next((score.higher_is_better for score in scores if score), None)
    return "" if side is None else f"{'higher' if side else 'lower'} is better"


def _panel(axes: Axes, rows: Sequence[Row], task: str, metric: str, look_of: Mapping[str, Mark]) -> None:
    axes.set_title(folded(task))
    name = "answer, bits/byte" if metric == BITS else folded(metric)
    axes.set_ylabel(f"{name}\n{_better(rows, task, metric)}".strip())
    levels: set[float] = set()
    for row in rows:
        middle, flops = row[f"{task}:{metric}"], row[f"{task}:{_FLOPS}"]
        if middle is None or not flops:
            continue
        mark, half = look_of[row["label"]], spread(row, f"{task}:{metric}")
        if half is not None:
            axes.errorbar([flops], [middle], yerr=half, fmt="none", ecolor=mark.color, capsize=3)
        draw_point(axes, flops, middle, mark, filled=not row["_unranked"], markersize=7, zorder=3)
        if (chance := row.get(f"{task}:{metric}_chance")) is not None:
            levels.add(chance)
    axes.margins(0.12)
    low, high = axes.get_ylim()
    for level in sorted(levels):
        room = _CHANCE_WITHIN * (high - low)
        if low - room <= level <= high + room:
            axes.axhline(level, color=REFERENCE, **DOTTED)
            frame: Any = ("axes fraction", "data")
            at: dict[str, Any] = {"xy": (0.01, level), "xycoords": frame, "va": "bottom"}
        else:
            at = {"xy": (0.01, 0.97 if level > high else 0.03), "xycoords": "axes fraction"}
            at["va"] = "top" if level > high else "bottom"
        off = "" if at["xycoords"] != "axes fraction" else f" {level:g}, off the axis"
        axes.annotate(f"chance{off}", fontsize=9, color=REFERENCE, **at)
