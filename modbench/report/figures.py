"""Figures of the leaderboard: loss against training FLOPs, loss against forward FLOPs per token, step
time against training FLOPs per token, and those of `modbench.report.routing_figure`; and the figure of
timings. All FLOPs are in convention ``model``."""

import statistics
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from modbench.report.leaderboard import Leaderboard
from modbench.report.plot_style import (
    DOTTED,
    DOUBTED,
    GREY,
    HEIGHT,
    REFERENCE,
    WIDTH,
    Mark,
    blank,
    draw_point,
    files,
    handle,
    legend_below,
    look,
    marks,
    plain,
    plains,
    row_names,
    say_nothing_to_show,
    sheet,
    written_out,
)
from modbench.report.routing_figure import routing_figures
from modbench.report.row import Exact, Quality, Row, Timed
from modbench.report.timing_table import CaseRow, TimingTable

#: What a figure draws of each row: the row, its mark, its name.
_Rows = list[tuple[Row, Mark, str]]
#: Handles of the legend by text.
_Handles = dict[str, Any]


def figures(board: Leaderboard) -> dict[str, bytes]:
    """All figures of ``board``, by file name; that of step times if any row has one."""
    contents, timed = {}, any(entry.row.value("train_step_seconds") for entry in board.entries)
    for name in FIGURES if timed else [*FIGURES][:-1]:
        with look():
            contents.update(files(name, drawn(board, name)))
    return contents | routing_figures(board)


def drawn(board: Leaderboard, name: str) -> Figure:
    """The figure ``name``, one of `FIGURES`."""
    look_of = marks([entry.row.label for entry in board.entries])
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
    values = (row.value("unigram_loss") for row, _, _ in rows)
    unigram = sorted({end for one in values if isinstance(one, Exact) for end in (one.low, one.high)})
    for value in unigram:
        line = axes.axhline(value, color=REFERENCE, **DOTTED)
        handles["unigram " + ", ".join(f"{value:.2f}" for value in unigram)] = line
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
        if isinstance(loss, Quality) and isinstance(flops, Exact):
            half = 0 if loss.high is None else loss.high - loss.mean
            barred |= loss.high is not None
            handles[name] = _point(axes, flops.low, loss.mean, half, mark)
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


def _step_times(board: Leaderboard, rows: _Rows, axes: Axes) -> _Handles:
    if board.machine_differences:
        parts = (f"{text.partition(':')[0]} differs" for text in board.machine_differences)
        why = "\n".join(("step times of different machines are not compared:", *parts))
        say_nothing_to_show(axes, why)
        return {}
    handles: _Handles = {}
    dense: list[tuple[float, float]] = []
    doubted = False
    for row, mark, name in rows:
        time, flops = board.value(row, "train_step_seconds"), row.value("train_flops_per_token")
        if isinstance(time, Timed) and isinstance(flops, Exact):
            milliseconds, half = 1e3 * time.median, 0.5e3 * (time.iqr or 0)
            handles[name] = _point(axes, flops.low, milliseconds, half, mark, filled=not time.marks)
            doubted |= bool(time.marks)
            dense += [(flops.low, milliseconds)] * (row.cell["router"]["name"] == "vanilla")
    if not handles:
        say_nothing_to_show(axes, "no run has a step time")
        return handles
    axes.margins(0.1)
    if doubted:
        handles[DOUBTED] = handle(GREY, filled=False)
    if dense:
        slope = dense[0][1] / dense[0][0]
        line = axes.axline(dense[0], slope=slope, color=REFERENCE, **DOTTED)
        handles["as much time per FLOP as vanilla"] = line
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("training FLOPs per token (nominal, convention model)")
    axes.set_ylabel("training step, median ± half its IQR (ms)")
    return handles


def _point(axes: Axes, x: float, y: float, half: float, mark: Mark, *, filled: bool = True) -> Line2D:
    """Draw a marker with an error bar of ``half`` on each side; return its handle for the legend."""
    draw_point(axes, x, y, mark, filled=filled, markersize=8, zorder=3)
    if half:
        axes.errorbar([x], [y], yerr=half, fmt="none", ecolor=mark.color, capsize=4, zorder=2.5)
    return handle(mark)


FIGURES: dict[str, Callable[[Leaderboard, _Rows, Axes], _Handles]] = {
    "loss_vs_training_flops": _learning_curves,
    "loss_vs_forward_flops": _final_losses,
    "step_time_vs_training_flops": _step_times,
}


def timing_figures(table: TimingTable) -> dict[str, bytes]:
    """Realised efficiency by case, one panel per size, by file name."""
    shown = [[row for row in group.cases if _is_drawn(row)] for group in table.groups]
    labels = list(dict.fromkeys(row.label for rows in shown for row in rows))
    look_of = marks(labels)
    with look():
        figure = sheet(WIDTH, HEIGHT * len(table.groups))
        panels = figure.subplots(len(table.groups), 1, squeeze=False).flat
        for axes, title, rows in zip(panels, table.titles, shown, strict=True):
            draw_efficiency(rows, look_of, axes)
            axes.set_title(plain(title))
        if labels:
            names = plains(labels)
            handles: dict[str, Any] = {names[label]: handle(look_of[label]) for label in labels}
            handles["as promised"] = Line2D([], [], color=REFERENCE, **DOTTED)
            if any(row.efficiency_marks for rows in shown for row in rows):
                handles[DOUBTED] = handle(GREY, filled=False)
            legend_below(figure, handles)
        return files("realised_efficiency", figure)


def _is_drawn(row: CaseRow) -> bool:
    return row.realised_efficiency is not None and row.router != "vanilla"


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
    axes.set_xticks(range(len(cases)), [plain(case) for case in cases], rotation=60, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("speed-up achieved / promised")
