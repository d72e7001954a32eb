"""Figures of the leaderboard: loss against training FLOPs, loss against forward FLOPs per token, step
time against training FLOPs per token, and those of `modbench.report.routing_figure`. All FLOPs are in
convention ``model``."""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from modbench.report.leaderboard import Entry, Leaderboard
from modbench.report.plot_style import (
    DOTTED,
    DOUBTED,
    GREY,
    REFERENCE,
    Mark,
    Point,
    blank,
    draw_point,
    files,
    handle,
    legend_below,
    look,
    marks,
    name_points,
    row_names,
    say_nothing_to_show,
    written_out,
)
from modbench.report.routing_figure import routing_figures
from modbench.report.row import Exact, Quality, Row, Timed


def figures(board: Leaderboard) -> dict[str, bytes]:
    """All figures of ``board``, by file name."""
    look_of = marks([entry.row.label for entry in board.entries])
    contents = {}
    for name, draw in _FIGURES.items():
        with look():
            figure, axes = blank()
            draw(board, look_of, figure, axes)
            contents.update(files(name, figure))
    return contents | routing_figures(board)


def _by_label(board: Leaderboard) -> list[Entry]:
    def order(entry: Entry) -> tuple[Any, ...]:
        cell = entry.row.cell
        return cell["router"]["label"], cell["train"]["budget"], entry.row.label

    return sorted(board.entries, key=order)


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


def _learning_curves(board: Leaderboard, look_of: dict[str, Mark], figure: Figure, axes: Axes) -> None:
    handles, labels = [], []
    texts = row_names(board.entries)
    banded = False
    for entry in _by_label(board):
        points = _curve(entry.row)
        if not points:
            continue
        flops, mean, least, greatest = zip(*points, strict=True)
        mark = look_of[entry.row.label]
        (line,) = axes.plot(
            flops,
            mean,
            color=mark.color,
            marker=mark.marker,
            linestyle=mark.dashes,
            linewidth=1.8,
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
        if least != greatest:
            banded = True
            axes.fill_between(flops, least, greatest, color=mark.color, alpha=0.18, linewidth=0)
        handles.append(line)
        labels.append(texts[entry.row.label])
    if not handles:
        say_nothing_to_show(axes, "no run has a learning curve")
        return
    unigram = _unigram_losses(board)
    for value in unigram:
        axes.axhline(value, color=REFERENCE, **DOTTED)
    if unigram:
        handles.append(Line2D([], [], color=REFERENCE, **DOTTED))
        labels.append("unigram " + ", ".join(f"{value:.2f}" for value in unigram))
    axes.set_xscale("log")
    written_out(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel("training FLOPs spent (convention model)")
    seeds = "\nmean of seeds, band from least to greatest" if banded else ""
    axes.set_ylabel(f"held-out loss, causal rule (nats/token){seeds}")
    legend_below(figure, handles, labels)


def _unigram_losses(board: Leaderboard) -> list[float]:
    values = (entry.row.value("unigram_loss") for entry in board.entries)
    return sorted(
        {end for value in values if isinstance(value, Exact) for end in (value.low, value.high)}
    )


def _final_losses(board: Leaderboard, look_of: dict[str, Mark], figure: Figure, axes: Axes) -> None:
    points, bars = [], []
    texts = row_names(board.entries)
    for entry in _by_label(board):
        loss = entry.row.value("heldout_loss")
        flops = entry.row.value("forward_flops_per_token")
        if not isinstance(loss, Quality) or not isinstance(flops, Exact):
            continue
        mark = look_of[entry.row.label]
        bar = None if loss.low is None or loss.high is None else (loss.low, loss.high)
        bars += _point(axes, flops.low, loss.mean, bar, mark)
        text = texts[entry.row.label]
        points.append(Point(flops.low, loss.mean, text, mark))
    if not points:
        say_nothing_to_show(axes, "no run was finished")
        return
    axes.margins(0.28, 0.14)
    axes.set_xscale("log")
    written_out(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel("forward FLOPs per token (nominal, convention model)")
    seeds = "\nmean of seeds and its 95 % t-interval" if bars else ""
    axes.set_ylabel(f"final held-out loss, causal rule (nats/token){seeds}")
    name_points(figure, axes, points, bars)


def _step_times(board: Leaderboard, look_of: dict[str, Mark], figure: Figure, axes: Axes) -> None:
    if board.machine_differences:
        say_nothing_to_show(
            axes,
            "step times of different machines are not compared:\n"
            + "\n".join(
                difference.partition(":")[0] + " differs" for difference in board.machine_differences
            ),
        )
        return
    points, avoid, dense = [], [], []
    doubted = False
    texts = row_names(board.entries)
    for entry in _by_label(board):
        time = board.value(entry.row, "train_step_seconds")
        flops = entry.row.value("train_flops_per_token")
        if not isinstance(time, Timed) or not isinstance(flops, Exact):
            continue
        milliseconds, half = 1e3 * time.median, 0.5e3 * (time.iqr or 0)
        mark = look_of[entry.row.label]
        bar = milliseconds - half, milliseconds + half
        avoid += _point(axes, flops.low, milliseconds, bar, mark, filled=not time.marks)
        doubted |= bool(time.marks)
        text = texts[entry.row.label]
        points.append(Point(flops.low, milliseconds, text, mark))
        if entry.row.cell["router"]["name"] == "vanilla":
            dense.append(milliseconds / flops.low)
    if not points:
        say_nothing_to_show(axes, "no run has a step time")
        return
    axes.margins(0.2, 0.2)
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    lines = [(handle(GREY, filled=False), DOUBTED)] if doubted else []
    if dense:
        slope = dense[0]
        axes.plot([low, high], [low * slope, high * slope], color=REFERENCE, **DOTTED)
        avoid += [(x, slope * x) for x in np.linspace(low, high, 201)]
        lines.append((Line2D([], [], color=REFERENCE, **DOTTED), "as much time per FLOP as vanilla"))
    # The reference line must not change the limits.
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("training FLOPs per token (nominal, convention model)")
    axes.set_ylabel("training step, median ± half its IQR (ms)")
    name_points(figure, axes, points, avoid, lines)


def _point(
    axes: Axes,
    x: float,
    y: float,
    bar: tuple[float, float] | None,
    mark: Mark,
    *,
    filled: bool = True,
) -> list[tuple[float, float]]:
    """Draw a marker and its error bar; return places on the bar that texts must avoid."""
    draw_point(axes, x, y, mark, filled=filled, markersize=8, zorder=3)
    if bar is None:
        return []
    low, high = bar
    axes.errorbar(
        [x], [y], yerr=[[y - low], [high - y]], fmt="none", ecolor=mark.color, capsize=4, zorder=2.5
    )
    return [(x, place) for place in np.linspace(low, high, 21)]


_FIGURES: dict[str, Callable[[Leaderboard, dict[str, Mark], Figure, Axes], Any]] = {
    "loss_vs_training_flops": _learning_curves,
    "loss_vs_forward_flops": _final_losses,
    "step_time_vs_training_flops": _step_times,
}
