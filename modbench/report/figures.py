"""Figures of the leaderboard: loss against training FLOPs, loss against forward FLOPs per token, and
those of `modbench.report.routing_figure`; and the figure of timings. All FLOPs are in convention
``model``."""

import statistics
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.report.leaderboard import Leaderboard
from modbench.report.plot_style import (
    DOTTED,
    GREY,
    REFERENCE,
    Mark,
    blank,
    draw_point,
    files,
    folded,
    handle,
    legend_below,
    look,
    marks,
    row_names,
    say_nothing_to_show,
    written_out,
)
from modbench.report.routing_figure import routing_figures
from modbench.report.row import Row
from modbench.report.timing_table import CaseRow, TimingTable

#: What a figure draws of each row: the row, its mark, its name.
_Rows = list[tuple[Row, Mark, str]]
#: Handles of the legend by text.
_Handles = dict[str, Any]


def figures(board: Leaderboard) -> dict[str, bytes]:
    """All figures of ``board``, by file name."""
    contents = {}
    for name in FIGURES:
        with look():
            contents.update(files(name, drawn(board, name)))
    return contents | routing_figures(board)


def drawn(board: Leaderboard, name: str) -> Figure:
    """The figure ``name``, one of `FIGURES`."""
    look_of = marks(entry.row.label for entry in board.entries)
    names = row_names(board.entries)
    rows = [(row, look_of[row.label], names[row.label]) for row in (e.row for e in board.entries)]
    rows.sort(key=lambda one: (one[0].cell["router"]["label"], one[0].cell["train"]["budget"], one[2]))
    figure, axes = blank()
    if handles := FIGURES[name](board, rows, axes):
        legend_below(figure, handles)
    return figure


def _curve(row: Row) -> list[tuple[float, float, float, float]]:
    """(training FLOPs, mean, smallest and largest held-out loss) at each step that all finished seeds
    reached; if no seed finished, that all seeds reached."""
    at: dict[int, list[tuple[int, float]]] = {}
    records = row.ok or row.records
    for record in records:
        for point in record.curve:
            at.setdefault(point["step"], []).append((point["flops"], point["heldout_loss"]))
    seeds = sum(bool(record.curve) for record in records)
    points = []
    for _, values in sorted(at.items()):
        flops = statistics.fmean(flops for flops, _ in values)
        losses = [loss for _, loss in values]
        if len(values) == seeds and flops > 0:
            points.append((flops, statistics.fmean(losses), min(losses), max(losses)))
    return points


def _learning_curves(board: Leaderboard, rows: _Rows, axes: Axes) -> _Handles:
    handles: _Handles = {}
    banded = False
    for row, mark, name in rows:
        points = _curve(row)
        if not points:
            continue
        flops, mean, least, greatest = zip(*points, strict=True)
        style: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "linestyle": mark.dashes}
        style |= {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        (handles[name],) = axes.plot(flops, mean, linewidth=1.8, **style)
        if least != greatest:
            banded = True
            axes.fill_between(flops, least, greatest, color=mark.color, alpha=0.18, linewidth=0)
    if not handles:
        say_nothing_to_show(axes, "no run has a learning curve")
        return handles
    values = [row.value("unigram_loss") for row, _, _ in rows]
    unigram = sorted({value.center for value in values if value})
    for loss in unigram:
        line = axes.axhline(loss, color=REFERENCE, **DOTTED)
        handles["unigram " + ", ".join(f"{loss:.2f}" for loss in unigram)] = line
    axes.set_xscale("log")
    written_out(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel("training FLOPs spent (convention model)")
    seeds = "\nmean of seeds, band from least to greatest" if banded else ""
    axes.set_ylabel(f"held-out loss, causal rule (nats/token){seeds}")
    return handles


def _final_losses(board: Leaderboard, rows: _Rows, axes: Axes) -> _Handles:
    handles: _Handles = {}
    barred = False
    for row, mark, name in rows:
        loss, flops = row.value("heldout_loss"), row.value("forward_flops_per_token")
        if loss and flops:
            draw_point(axes, flops.center, loss.center, mark, filled=True, markersize=8, zorder=3)
            if loss.spread is not None:
                barred, bar = True, {"ecolor": mark.color, "capsize": 4, "zorder": 2.5}
                axes.errorbar([flops.center], [loss.center], yerr=loss.spread, fmt="none", **bar)
            handles[name] = handle(mark)
    if not handles:
        say_nothing_to_show(axes, "no run was finished")
        return handles
    axes.margins(0.1)
    axes.set_xscale("log")
    written_out(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel("forward FLOPs per token (nominal, convention model)")
    seeds = "\nmean of seeds and its 95 % t-interval" if barred else ""
    axes.set_ylabel(f"final held-out loss, causal rule (nats/token){seeds}")
    return handles


FIGURES: dict[str, Callable[[Leaderboard, _Rows, Axes], _Handles]] = {
    "loss_vs_training_flops": _learning_curves,
    "loss_vs_forward_flops": _final_losses,
}


def timing_figures(table: TimingTable) -> dict[str, bytes]:
    """Realised efficiency by case, by file name."""
    rows = [row for row in table.cases if row.realised_efficiency and row.router != "vanilla"]
    look_of = marks(row.label for row in rows)
    with look():
        figure, axes = blank()
        draw_efficiency(rows, look_of, axes)
        if rows:
            handles: dict[str, Any] = {folded(label): handle(look_of[label]) for label in look_of}
            handles["as promised"] = Line2D([], [], color=REFERENCE, **DOTTED)
            if any(row.efficiency_marks for row in rows):
                handles["doubtful time"] = handle(GREY, filled=False)
            legend_below(figure, handles)
        return files("realised_efficiency", figure)


def draw_efficiency(rows: list[CaseRow], look_of: dict[str, Mark], axes: Axes) -> None:
    """Draw the efficiencies of the routed schemes, hollow where a time is doubtful."""
    if not rows:
        say_nothing_to_show(axes, "no routed scheme and vanilla were both timed")
        return
    cases = list(dict.fromkeys(row.case for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    for row in rows:
        # Next to each other, so that no marker hides another.
        place = cases.index(row.case) + 0.6 * ((labels.index(row.label) + 0.5) / len(labels) - 0.5)
        style: dict[str, Any] = {"filled": not row.efficiency_marks, "markersize": 6.5, "clip_on": False}
        draw_point(axes, place, row.realised_efficiency or 0, look_of[row.label], **style)
    axes.axhline(1.0, color=REFERENCE, **DOTTED)
    axes.set_ylim(0, 1.1 * max(1.0, *(row.realised_efficiency or 0 for row in rows)))
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.set_xticks(range(len(cases)), cases, rotation=60, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("speed-up achieved / promised")
