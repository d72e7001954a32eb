"""Figure of downstream tasks: score and bits per byte of the right answer against inference FLOPs per
evaluated token (realised, convention ``model``), a marker per scheme."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modbench.report.downstream.page import groups_of, has_flops, scored_entries
from modbench.report.downstream.scores import BITS, compute_of, metrics_of, score_of
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

#: Largest number of tasks, each with a row of panels; of a group, itself or its first tasks.
_TASKS = 6
_HEIGHT = 2.6  #: inches of a row
_FLOPS = "realised_flops_per_token"


def downstream_figure(board: Leaderboard, look_of: Mapping[str, Mark] | None = None) -> dict[str, bytes]:
    """The figure of the largest budget, by file name; nothing if no task was scored."""
    scored = [scored_entries(entries) for entries in board.comparisons]
    scored = [entries for entries in scored if any(_drawn_tasks(entries))]
    if not scored:
        return {}
    look_of = look_of or marks(entry.scheme for entry in scored[-1])
    return drawn_files({"downstream": partial(_figure, scored[-1], look_of)})


def _drawn_tasks(entries: Sequence[Entry]) -> list[str]:
    """Tasks with a row of panels: of a group, only itself, where it has a score."""
    rows = [entry.row for entry in entries if has_flops(entry.row)]
    found: list[str] = []
    for group, tasks in groups_of(rows).items():
        found += [group] if group in tasks else tasks
    return found[:_TASKS]


def _figure(entries: Sequence[Entry], look_of: Mapping[str, Mark]) -> Figure:
    tasks = _drawn_tasks(entries)
    figure = sheet(1.5 * WIDTH, _HEIGHT * len(tasks))
    panels = figure.subplots(len(tasks), 2, squeeze=False)
    for (left, right), task in zip(panels, tasks, strict=True):
        metrics = metrics_of([entry.row for entry in entries], task)
        _panel(left, entries, task, metrics[0], look_of)
        if BITS in metrics:
            _panel(right, entries, task, BITS, look_of)
        else:
            right.set_axis_off()
    budget = entries[0].row.budget
    figure.suptitle(f"after {budget:.3g} training FLOPs; bars: 95 % intervals", fontsize=11)
    drawn_right = [right for _, right in panels if right.axison]
    for axes in (panels[-1][0], *drawn_right[-1:]):
        axes.set_xlabel("FLOPs per evaluated token (realised)")
    names = {entry.scheme: entry.scheme + " (not ranked)" * bool(entry.unranked) for entry in entries}
    legend_below(
        figure,
        {
            folded(name): handle(look_of[scheme], filled=name == scheme)
            for scheme, name in sorted(names.items())
        },
    )
    return figure


def _panel(
    axes: Axes, entries: Sequence[Entry], task: str, metric: str, look_of: Mapping[str, Mark]
) -> None:
    axes.set_title(folded(task))
    axes.set_ylabel("bits/byte of the answer" if metric == BITS else folded(metric))
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
    for level in sorted(levels):
        axes.axhline(level, color=REFERENCE, **DOTTED)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
        axes.annotate("chance", (0.01, level), fontsize=9, color=REFERENCE, **place)
    axes.margins(0.12)
    if axes.lines:
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
