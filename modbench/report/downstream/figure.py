"""Figure of downstream tasks: score and bits per byte of the right answer against inference FLOPs per
evaluated token (realised, convention ``model``), a marker per scheme."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modbench.report.downstream.page import groups_of, has_flops, scored_entries
from modbench.report.downstream.scores import BITS, compute_of, metrics_of, score_of, values_of
from modbench.report.leaderboard.board import Entry, Leaderboard
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


def downstream_figure(board: Leaderboard, look_of: Mapping[str, Mark] | None = None) -> dict[str, bytes]:
    """The figure of the largest budget, by file name; nothing if no task was scored."""
    scored = [scored_entries(entries) for entries in board.comparisons]
    scored = [entries for entries in scored if any(_drawn_tasks(entries))]
    if not scored:
        return {}
    look_of = look_of or marks({entry.scheme: entry.row.run.router.name for entry in scored[-1]})
    return drawn_files({"downstream": partial(drawn, scored[-1], look_of)})


def _drawn_tasks(entries: Sequence[Entry]) -> list[str]:
    """Tasks with a row of panels: of a group, only itself, where it has a score."""
    rows = [entry.row for entry in entries if has_flops(entry.row)]
    tasks_drawn: list[str] = []
    for group, tasks in groups_of(rows).items():
        tasks_drawn += [group] if group in tasks else tasks
    return tasks_drawn[:_TASKS]


def drawn(entries: Sequence[Entry], look_of: Mapping[str, Mark]) -> Figure:
    """The figure of ``entries``: a panel per task and metric."""
    shown = panels_of(entries)
    lines = -(-len(shown) // 2)
    figure = sheet(1.5 * WIDTH, _HEIGHT * lines)
    panels = list(figure.subplots(lines, 2, squeeze=False, sharex=True).flat)
    for axes, (task, metric) in zip(panels, shown, strict=False):
        _panel(axes, entries, task, metric, look_of)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    if panels[0].lines:
        panels[0].set_xscale("log")
        written_out(panels[0].xaxis, *panels[0].get_xlim())
    for axes in panels[max(len(shown) - 2, 0) : len(shown)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    budget = entries[0].row.budget
    figure.suptitle(f"after {budget:.3g} training FLOPs; bars: 95 % intervals", fontsize=11)
    names = {entry.scheme: entry.scheme + " (not ranked)" * bool(entry.unranked) for entry in entries}
    legend_below(
        figure,
        {
            folded(name): handle(look_of[scheme], filled=name == scheme, markersize=7)
            for scheme, name in sorted(names.items())
        },
        "FLOPs per evaluated token (realised, convention model)",
    )
    return figure


def panels_of(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Task and metric of each panel: the main metric of each task, and the bits per byte of its answers
    unless that is the same for a task of text, whose metric is bits per byte."""
    shown = []
    for task in _drawn_tasks(entries):
        metrics = metrics_of([entry.row for entry in entries], task)
        shown.append((task, metrics[0]))
        if BITS in metrics and metrics[0] not in (BITS, "bits_per_byte"):
            shown.append((task, BITS))
    return shown


def _better(entries: Sequence[Entry], task: str, metric: str) -> str:
    """The side of ``metric`` that is better; empty if the records don't state it."""
    if metric == BITS:
        return "lower is better"
    values = [value for entry in entries for value in values_of(entry.row, task, metric)]
    side = getattr(values[0], "higher_is_better", None) if values else None
    return "" if side is None else f"{'higher' if side else 'lower'} is better"


def _panel(
    axes: Axes, entries: Sequence[Entry], task: str, metric: str, look_of: Mapping[str, Mark]
) -> None:
    axes.set_title(folded(task))
    name = "answer, bits/byte" if metric == BITS else folded(metric)
    axes.set_ylabel(f"{name}\n{_better(entries, task, metric)}".strip())
    levels = set()
    for entry in entries:
        score, flops = score_of(entry.row, task, metric), compute_of(entry.row, task, _FLOPS)
        if score is None or not flops:
            continue
        mark, middle = look_of[entry.scheme], score.value.center
        if score.value.spread is not None:
            axes.errorbar(
                [flops], [middle], yerr=score.value.spread, fmt="none", ecolor=mark.color, capsize=3
            )
        draw_point(axes, flops, middle, mark, filled=not entry.unranked, markersize=7, zorder=3)
        if score.chance is not None:
            levels.add(score.chance)
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
