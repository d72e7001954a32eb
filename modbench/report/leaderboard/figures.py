"""Figures of the leaderboard: loss against training FLOPs, loss against forward FLOPs per token, and
those of `modbench.report.routing.figure`. All FLOPs are in convention ``model``.

Each is a set of panels by budget; learning curves also by size. A scheme has the same colour and marker
in all of them. A figure without data is not drawn. Rows beyond the first `MOST_NAMED` are drawn in grey,
without a name.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from modbench.report.leaderboard.board import Board, comparison_titles, size_of
from modbench.report.leaderboard.rows import Row, center, shape_name, spread
from modbench.report.plot_style import (
    DOTTED,
    HEIGHT,
    REFERENCE,
    Mark,
    draw_point,
    drawn_files,
    handle,
    legend_below,
    marks,
    sheet,
    written_out,
)
from modbench.report.routing.figure import routing_figures

_Marks = Mapping[str, Mark]
#: Inches of a panel, alone or among others.
_ALONE, _WIDTH, _HEIGHT = 6.8, 4.6, 3.2
_COLUMNS = 3
#: Largest number of rows of a panel, or schemes of a legend, that are named, in the table's order.
MOST_NAMED = 20
_UNNAMED = "0.7"  #: grey of the others


@dataclass(frozen=True)
class _Panel:
    title: str
    rows: Sequence[Row]


def figures(board: Board, look_of: _Marks | None = None) -> dict[str, bytes]:
    """All figures of ``board`` that have data, by file name. ``look_of``: the marks of all schemes."""
    draws = {name: partial(drawn, board, name, look_of) for name in FIGURES}
    return drawn_files(draws) | routing_figures(board)


def drawn(board: Board, name: str, look_of: _Marks | None = None) -> Figure | None:
    """The figure ``name``, one of `FIGURES`; None without data."""
    look_of = look_of or marks({row["label"]: row["router"] for row in board.rows})
    return FIGURES[name](board, look_of)


def curve_points(row: Row) -> list[tuple[float, float, float, float]]:
    """(training FLOPs, mean, smallest and largest held-out loss) of the curve of ``row``, up to the
    FLOPs that all its seeds spent: those that finished, or all if none did.

    Seeds are joined by FLOPs, not by step: a scheme whose number of routed tokens varies spends the same
    FLOPs in another number of steps. A point lies at the mean FLOPs of the seeds; the loss of each is
    interpolated there, in the logarithm of FLOPs.
    """
    curves = [
        [(point.flops, point.heldout_loss) for point in record.curve if point.flops > 0]
        for record in row["_ok"] or row["_results"]
        if record.curve
    ]
    points = []
    for at_point in zip(*curves, strict=False):
        flops = statistics.fmean(spent for spent, _ in at_point)
        losses = [_interpolated(curve, flops) for curve in curves]
        points.append((flops, statistics.fmean(losses), min(losses), max(losses)))
    return points


def _interpolated(curve: Sequence[tuple[float, float]], flops: float) -> float:
    spent, losses = zip(*curve, strict=True)
    return float(np.interp(math.log(flops), np.log(spent), losses))


def _grid(board: Board, of: Callable[[Row], object], *, by_shape: bool) -> list[list[_Panel]]:
    """Rows of panels with the rows that ``of`` finds data for: a column per comparison and, if
    ``by_shape`` and a scheme has several shapes, a row per shape. A single row or column is wrapped."""
    columns = [[row for row in rows if of(row)] for rows in board.comparisons]
    columns = [rows for rows in columns if rows]
    sizes = Counter((row["comparison"], row["label"], row["model"]) for of in columns for row in of)
    if not by_shape or max(Counter(key[:2] for key in sizes).values(), default=0) < 2:
        titles = comparison_titles(columns) if len(columns) > 1 else [""] * len(columns)
        return _wrapped([_Panel(*panel) for panel in zip(titles, columns, strict=True)])
    rows = sorted((row for column in columns for row in column), key=size_of)
    shapes = {row["model"]: row for row in reversed(rows)}
    grid = []
    for shape, row in reversed(shapes.items()):
        name = row["shape"] or shape_name(row["_model"])
        of_shape = [[of for of in column if of["model"] == shape] for column in columns]
        titles = (
            [f"{name}, {budget}" for budget in comparison_titles(columns)]
            if len(columns) > 1
            else [name]
        )
        grid.append([_Panel(*panel) for panel in zip(titles, of_shape, strict=True)])
    return _wrapped([line[0] for line in grid]) if len(columns) == 1 else grid


def _wrapped(panels: list[_Panel]) -> list[list[_Panel]]:
    return [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]


def _axes(grid: list[list[_Panel]]) -> tuple[Figure, list[tuple[Axes, _Panel]]]:
    """A figure with axes for each panel of ``grid``. Panels of one budget have a common y axis."""
    across = max(map(len, grid))
    alone = len(grid) == across == 1
    width, height = (_ALONE, HEIGHT) if alone else (_WIDTH * across, _HEIGHT * len(grid))
    figure = sheet(width, height)
    every = figure.subplots(len(grid), across, squeeze=False)
    panels: list[tuple[Axes, _Panel]] = []
    of_budget: dict[int, Axes] = {}
    for line, row in zip(grid, every, strict=True):
        for number, axes in enumerate(row):
            if number >= len(line) or not line[number].rows:
                axes.set_axis_off()
                continue
            first = of_budget.setdefault(line[number].rows[0]["comparison"], axes)
            if first is not axes:
                axes.sharey(first)
            axes.set_title(line[number].title)
            panels.append((axes, line[number]))
    return figure, panels


def _learning_curves(board: Board, look_of: _Marks) -> Figure | None:
    grid = _grid(board, curve_points, by_shape=True)
    if not grid:
        return None
    figure, panels = _axes(grid)
    handles: dict[str, Any] = {}
    unigram: dict[str, Any] = {}
    words = set()
    for axes, panel in panels:
        others = [curve_points(row) for row in panel.rows[MOST_NAMED:]]
        if others:
            words.add(f"grey: the rows of the table after its first {MOST_NAMED}")
            lines = [[point[:2] for point in curve] for curve in others]
            axes.add_collection(LineCollection(lines, colors=_UNNAMED, linewidths=0.6, zorder=1.5))
        for row in panel.rows[:MOST_NAMED]:
            flops, mean, least, greatest = zip(*curve_points(row), strict=True)
            mark = look_of[row["label"]]
            style: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "markersize": 4.5}
            (line,) = axes.plot(flops, mean, linewidth=1.6, linestyle=mark.dashes, **style)
            handles.setdefault(row["label"] + " (not ranked)" * bool(row["_unranked"]), line)
            if least != greatest:
                words.add("mean of seeds, band from least to greatest")
                axes.fill_between(flops, least, greatest, color=mark.color, alpha=0.18, linewidth=0)
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
        values = (center(row, "unigram_loss") for row in panel.rows)
        for loss in sorted({value for value in values if value is not None}):
            unigram[f"unigram {loss:.2f}"] = axes.axhline(loss, color=REFERENCE, **DOTTED)
    figure.supylabel("held-out loss (nats/token),\ncausal rule", fontsize=11)
    flops_spent = "training FLOPs spent (convention model)"
    legend_below(figure, handles | unigram, "\n".join([flops_spent, *sorted(words, reverse=True)]))
    return figure


def _final_losses(board: Board, look_of: _Marks) -> Figure | None:
    grid = _grid(board, _Final.of, by_shape=False)
    if not grid:
        return None
    figure, panels = _axes(grid)
    handles: dict[str, Any] = {}
    words = set()
    every = dict.fromkeys(row["label"] for _, panel in panels for row in panel.rows)
    named = {*list(every)[:MOST_NAMED]}
    if len(every) > MOST_NAMED:
        words.add(f"grey: the schemes of the table after its first {MOST_NAMED}")
    for axes, panel in panels:
        unnamed = [_Final.of(row) for row in panel.rows if row["label"] not in named]
        at = [(point.flops, point.loss) for point in unnamed if point]
        if at:
            axes.plot(*zip(*at, strict=True), color=_UNNAMED, linestyle="none", marker=".", zorder=1.5)
        schemes: dict[str, list[Row]] = defaultdict(list)
        for row in panel.rows:
            if row["label"] in named:
                schemes[row["label"]].append(row)
        for scheme, rows in schemes.items():
            mark = look_of[scheme]
            sizes = [(_Final.of(row), row["best_size"]) for row in rows]
            points = sorted((point, best) for point, best in sizes if point is not None)
            for point, best in points:
                draw_point(axes, point.flops, point.loss, mark, filled=best, markersize=8, zorder=3)
                if point.spread:
                    words.add("mean of seeds and its 95 % t-interval")
                    bar = {"ecolor": mark.color, "capsize": 4, "zorder": 2.5}
                    axes.errorbar([point.flops], [point.loss], yerr=point.spread, fmt="none", **bar)
            if len(points) > 1:
                words.add("lines: sizes of a scheme, the best filled")
                at = [(point.flops, point.loss) for point, _ in points]
                axes.plot(*zip(*at, strict=True), color=mark.color, linewidth=1)
            name = scheme + " (not ranked)" * all(row["_unranked"] for row in rows)
            handles.setdefault(name, handle(mark, markersize=8))
        axes.margins(0.1)
        axes.set_xscale("log")
        written_out(axes.xaxis, *axes.get_xlim())
    figure.supylabel("final held-out loss (nats/token),\ncausal rule", fontsize=11)
    flops = "forward FLOPs per token (realised, convention model)"
    legend_below(figure, handles, "\n".join([flops, *sorted(words, reverse=True)]))
    return figure


@dataclass(frozen=True, order=True)
class _Final:
    """Position of a row; ``spread`` is half the interval of its loss."""

    flops: float
    loss: float
    spread: float = 0.0

    @classmethod
    def of(cls, row: Row) -> "_Final | None":
        loss, flops = row["heldout_loss"], row["forward_flops_per_token_realised"]
        return (
            None if loss is None or not flops else cls(flops, loss, spread(row, "heldout_loss") or 0.0)
        )


FIGURES: dict[str, Callable[[Board, _Marks], Figure | None]] = {
    "loss_vs_training_flops": _learning_curves,
    "loss_vs_forward_flops": _final_losses,
}
